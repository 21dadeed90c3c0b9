"""The rule that let each batch start is named."""

from __future__ import annotations

import numpy as np
import pytest

from symphony_dask.engine.batching import AS_ALL, Batching
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.journal import dump, load
from symphony_dask.engine.matching import FULL_LOSS
from symphony_dask.engine.start_rules import START_RULES, TEXTS
from symphony_dask.engine.state import FLIGHT

MS = 1_000_000
SLO = 25 * MS
MAX_BATCH = 16

#: l(b) = b + 5 ms.
TABLE = (np.arange(MAX_BATCH + 2) + 5) * MS


def engine_of(policy: str = "adaptive", batching: Batching = AS_ALL, *, gpus: int = 2, exact: bool = True) -> Engine:
    engine = Engine(policy, exact=exact, max_requests=64)
    engine.add_model(0, slo_ns=SLO, latency_ns={0: TABLE}, batching=batching)
    for _ in range(gpus):
        engine.add_gpu(0)
    return engine


def submit(engine: Engine, now: int, n: int = 1, left: int = SLO) -> None:
    slots = engine.submit(now, np.zeros(n, np.int32), np.full(n, now + left), np.arange(n))
    assert (slots >= 0).all()


def started(engine: Engine, now: int) -> list[str]:
    """The rules of the batches that start by ``now``."""
    batches = engine.advance(now).batches
    return [START_RULES[engine.rule(int(row["gpu"]), int(row["batch"]))] for row in batches]


@pytest.mark.parametrize(
    ("policy", "batching", "requests", "at", "rule"),
    [
        ("adaptive", AS_ALL, 1, 0, "packing"),
        ("adaptive", Batching(prefer="gpus"), 1, SLO - 7 * MS, "window"),
        ("adaptive", Batching(prefer="gpus", max_delay_ns=5 * MS), 1, 5 * MS, "max_delay"),
        ("adaptive", Batching(prefer="gpus", max_delay_ns=24 * MS), 1, SLO - 7 * MS, "window"),
        ("adaptive", Batching("eager"), 1, 0, "eager"),
        ("deferred", AS_ALL, 1, SLO - 7 * MS, "window"),
        ("deferred", AS_ALL, 16, 0, "full"),
        ("deferred", Batching(max_delay_ns=0), 1, 0, "max_delay"),
        ("eager", AS_ALL, 1, 0, "eager"),
        ("latest", AS_ALL, 1, SLO - 6 * MS, "latest"),
        ("timeout(0.4)", AS_ALL, 1, 10 * MS, "timeout"),
        ("deferred", Batching("timeout(0.4)"), 1, 10 * MS, "timeout"),
        ("timeout(1)", AS_ALL, 1, SLO - 6 * MS, "latest"),
        ("target", AS_ALL, 11, 0, "target"),
        ("target", AS_ALL, 1, SLO - 7 * MS, "window"),
    ],
)
def test_a_batch_starts_by_the_rule_of_its_model(
    policy: str, batching: Batching, requests: int, at: int, rule: str
) -> None:
    engine = engine_of(policy, batching)
    submit(engine, 0, requests)
    assert at == 0 or started(engine, at - 1) == []
    assert started(engine, at) == [rule]


def test_a_batch_that_waited_for_a_gpu_keeps_the_rule_that_opened_its_window() -> None:
    engine = engine_of("deferred", gpus=1)
    submit(engine, 0, 16)
    assert started(engine, 0) == ["full"]  # until 21 ms
    submit(engine, 1 * MS, left=29 * MS)
    assert started(engine, 21 * MS - 1) == []
    assert started(engine, 21 * MS) == []
    assert started(engine, 23 * MS) == ["window"]


def test_short_gpus_let_a_batch_start_before_its_window() -> None:
    engine = engine_of(batching=Batching(prefer="gpus"))
    engine.state.g["waiting"] = 0.001
    engine.state.g["lost"] = FULL_LOSS / 2  # half an SLO
    submit(engine, 0)
    assert started(engine, 5_500_000 - 1) == []
    assert started(engine, 5_500_000) == ["contention"]


def test_models_that_prefer_gpus_wait_for_their_window_while_nothing_is_dropped() -> None:
    engine = engine_of(batching=Batching(prefer="gpus"))
    engine.state.g["waiting"] = 1.0
    submit(engine, 0)
    assert started(engine, 10 * MS) == []


def test_with_few_gpus_at_work_it_is_not_their_shortness() -> None:
    engine = engine_of()
    engine.state.g["waiting"] = 1.0
    submit(engine, 0)
    assert started(engine, 0) == ["packing"]
    submit(engine, 1, 12)
    assert started(engine, 1) == ["contention"]  # one GPU is at work, and deferral would use one


def test_a_slow_gpu_is_probed() -> None:
    engine = engine_of("deferred", gpus=1, exact=False)
    engine.state.gpu["slow"] = engine.state.g["n_slow"] = 1
    submit(engine, 0)
    assert started(engine, 0) == ["probe"]


def test_what_estimates_refuse_is_a_trial() -> None:
    engine = engine_of("eager", gpus=1, exact=False)
    submit(engine, 0)
    assert started(engine, 0) == ["eager"]
    engine.completed(60 * MS, 0, 0, 0, 60 * MS)  # counts as three times: 6 * (1 + 2/3)
    submit(engine, 161 * MS, left=9 * MS)  # takes 10 as estimated, 6 as declared
    assert started(engine, 161 * MS) == ["trial"]


def test_a_batch_that_is_not_there_has_no_rule() -> None:
    engine = engine_of()
    submit(engine, 0)
    assert started(engine, 0) == ["packing"]
    assert engine.rule(0, 1) == engine.rule(1, 0) == 0
    with pytest.raises(ValueError, match="GPU 99 is not there"):
        engine.rule(99, 0)


def test_states_keep_the_rule_and_those_of_before_have_none() -> None:
    engine = engine_of(exact=False)
    submit(engine, 0)
    assert started(engine, 0) == ["packing"]
    assert load(dump(engine)).rule(0, 0) == START_RULES.index("packing")
    assert engine.state.flight.dtype.itemsize == 64  # as it was without the rule
    assert [FLIGHT.fields[name][1] for name in ("tried", "rule")] == [36, 40]  # type: ignore[index]
    engine.state.flight["rule"] = 0  # padding was
    assert load(dump(engine)).rule(0, 0) == START_RULES.index("unknown")
    engine.state.flight["rule"] = len(START_RULES)
    with pytest.raises(ValueError, match="rule of a batch"):
        load(dump(engine))


def test_every_rule_has_a_text() -> None:
    assert all(TEXTS.values())
    assert len(START_RULES) == 12
