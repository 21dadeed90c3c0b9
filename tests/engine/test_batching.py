"""How a model's batches are formed where that differs from all others'. l(b) is b + 5 ms, the SLO 25 ms."""

from __future__ import annotations

import numpy as np
import pytest

from symphony_dask.engine.batching import Batching
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.events import EVENT, OPS, Journal
from symphony_dask.engine.journal import Replayer, dump
from tests.helpers.engines.engines import make_engine, ns, submit

SLO = 25


def formed(policy: str, batching: Batching, gpus: int = 1) -> Engine:
    engine = make_engine(models=2, gpus=gpus, policy=policy)
    engine.set_batching(0, 0, batching)
    return engine


def starts(engine: Engine, model: int = 0) -> float:
    """When a lone request of a model, which comes at 0, starts; ms."""
    submit(engine, 0, SLO, model=model)
    now = 0
    while not len(engine.advance(now).batches):
        now = engine.next_event()
    return now / 1e6


@pytest.mark.parametrize(
    ("policy", "batching", "ms"),
    [
        ("adaptive", Batching(), 0),
        ("adaptive", Batching(prefer="gpus"), SLO - 7),
        ("adaptive", Batching(prefer="gpus", max_delay_ns=ns(5)), 5),
        ("adaptive", Batching(prefer="gpus", max_delay_ns=0), 0),
        ("adaptive", Batching(prefer="gpus", max_delay_ns=ns(24)), SLO - 7),
        ("adaptive", Batching(max_delay_ns=ns(5)), 0),
        ("adaptive", Batching("deferred"), SLO - 7),
        ("adaptive", Batching("latest"), SLO - 6),
        ("adaptive", Batching("latest", max_delay_ns=ns(3)), 3),
        ("adaptive", Batching("timeout(0.2)"), 5),
        ("adaptive", Batching("timeout(0.2)", max_delay_ns=ns(4)), 4),
        ("adaptive", Batching("timeout(1)"), SLO - 6),
        ("deferred", Batching(), SLO - 7),
        ("deferred", Batching(max_delay_ns=ns(5)), 5),
        ("deferred", Batching("eager"), 0),
        ("deferred", Batching("adaptive"), 0),
        ("timeout(0.4)", Batching(), 10),
        ("timeout(0.4)", Batching(max_delay_ns=ns(5)), 5),
        ("timeout(0.4)", Batching("timeout(0.2)"), 5),
    ],
)
def test_a_lone_request_starts_as_its_model_says(policy: str, batching: Batching, ms: float) -> None:
    engine = formed(policy, batching)
    assert starts(engine) == ms
    engine.validate()


def test_other_models_are_as_before() -> None:
    assert starts(formed("deferred", Batching("eager")), model=1) == SLO - 7
    assert starts(formed("adaptive", Batching("deferred")), model=1) == 0


def test_it_can_change_while_requests_wait() -> None:
    engine = formed("deferred", Batching())
    submit(engine, 0, SLO)
    assert len(engine.advance(0).batches) == 0
    engine.set_batching(ns(2), 0, Batching(max_delay_ns=ns(3)))
    assert len(engine.advance(ns(2)).batches) == 0
    assert engine.next_event() == ns(3)
    assert len(engine.advance(ns(3)).batches) == 1


def test_more_requests_come_along_until_the_delay_is_over() -> None:
    engine = formed("deferred", Batching(max_delay_ns=ns(5)))
    for t in range(5):
        submit(engine, t, t + SLO)
        assert len(engine.advance(ns(t)).batches) == 0
    assert engine.next_event() <= ns(5)
    engine.advance(ns(4.5))
    assert engine.advance(ns(5)).batches["size"].tolist() == [5]


def test_a_model_that_takes_the_place_of_another_is_as_all() -> None:
    engine = formed("deferred", Batching("eager", "gpus", ns(1)))
    engine.remove_model(0, 0)
    table = np.arange(130, dtype=np.int64) * ns(1) + ns(5)
    assert engine.add_model(0, slo_ns=ns(SLO), latency_ns={0: table}) == 0
    assert starts(engine) == SLO - 7


def test_where_no_model_is_adaptive_none_starts_early_though_gpus_are_short() -> None:
    engine = formed("adaptive", Batching("deferred"))
    engine.set_batching(0, 1, Batching("deferred"))
    engine.state.g["waiting"] = 1.0
    assert starts(engine) == SLO - 7


@pytest.mark.parametrize(
    ("batching", "text"),
    [
        (Batching("best"), "policy 'best' is unknown"),
        (Batching("timeout(2)"), r"policy 'timeout\(2\)' is unknown"),
        (Batching(prefer="speed"), "prefer='speed': choose latency or gpus"),
        (Batching(max_delay_ns=-1), "max_delay_ns is -1"),
        (Batching(max_delay_ns=1 << 62), "max_delay_ns is"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(batching: Batching, text: str) -> None:
    engine = make_engine(policy="deferred")
    with pytest.raises(ValueError, match=text):
        engine.set_batching(0, 0, batching)
    with pytest.raises(ValueError, match="model 7 is not there"):
        engine.set_batching(0, 7, Batching())
    assert starts(engine) == SLO - 7


@pytest.mark.parametrize(
    "batching", [Batching(), Batching("eager"), Batching(None, "gpus", 0), Batching("timeout(0.3)")]
)
def test_it_is_in_the_journal(batching: Batching) -> None:
    engine = make_engine(policy="adaptive")
    replayer = Replayer(dump(engine), np.dtype([("id", "i8")]))
    engine.journal = Journal()
    engine.set_batching(ns(1), 0, batching)
    rows, data = engine.journal.take()
    (row,) = np.frombuffer(rows, EVENT).tolist()
    replayer.apply(OPS[row[0]], row[1], *row[2:6], data)
    assert dump(replayer.engine) == dump(engine)
