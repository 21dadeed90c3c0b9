from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from symphony_dask.backends import Emulated, emulated
from symphony_dask.errors import BadInput
from tests.helpers.runners import answers, run


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The sleeps asked for, in s, on a clock that moves only by them."""
    asked: list[float] = []
    now_ns = 0

    def sleep(seconds: float) -> None:
        nonlocal now_ns
        asked.append(seconds)
        now_ns += round(seconds * 1e9)

    fake: Any = SimpleNamespace(sleep=sleep, perf_counter_ns=lambda: now_ns)
    monkeypatch.setattr(emulated, "time", fake)
    return asked


def test_a_batch_takes_its_latency_and_answers_none(sleeps: list[float]) -> None:
    result = run(Emulated(1, 4), b"not", b"looked", b"at")
    assert answers(result) == [None, None, None]
    assert sleeps == [0.0065, 0.0005]


def test_a_latency_of_zero_does_not_sleep(sleeps: list[float]) -> None:
    assert answers(run(Emulated(0, 0), b"a", b"b")) == [None, None]
    assert sleeps == []


def test_parse_reads_alpha_and_beta() -> None:
    assert Emulated.parse("1.053,5.072") == Emulated(1.053, 5.072)


@pytest.mark.parametrize("text", ["1.053", "a,b", "-1,2", "nan,1"])
def test_parse_refuses_what_is_no_profile(text: str) -> None:
    with pytest.raises(BadInput, match="profile"):
        Emulated.parse(text)


def test_its_profile_is_known_without_measuring() -> None:
    assert Emulated(1, 2).profile(max_batch=3).latency_ns().tolist() == [0, 3_000_000, 4_000_000, 5_000_000, 6_000_000]


def test_it_survives_cloudpickle() -> None:
    assert cloudpickle.loads(cloudpickle.dumps(Emulated(1, 2))) == Emulated(1, 2)
