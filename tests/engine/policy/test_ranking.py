"""Which of several models gets a GPU (``ranking``). l(b) is b + 5 ms."""

from __future__ import annotations

import pytest

from symphony_dask.engine.engine import Engine
from tests.helpers.engines.engines import make_engine, ns, submit


def contended(policy: str, *queues: list[float]) -> Engine:
    """One GPU, free at 6 ms, and a model for each list of deadlines beside the one that runs."""
    engine = make_engine(models=1 + len(queues), policy=policy)
    submit(engine, 0, 6, model=0)
    assert len(engine.advance(0).batches) == 1
    for m, deadlines in enumerate(queues, 1):
        submit(engine, 0, *deadlines, model=m)
    engine.advance(0)
    return engine


def order(engine: Engine) -> list[int]:
    """Models in the order in which they get the GPU from 6 ms on."""
    found: list[int] = []
    for _ in range(500):
        decided = engine.advance(max(engine.next_event(), ns(6)))
        found += decided.batches["model"].tolist()
        if not engine.state.mod["n"].any():
            break
    return found


@pytest.mark.parametrize("policy", ["adaptive", "eager", "deferred"])
def test_the_batch_as_it_would_be_dispatched_tells_who_can_wait_least(policy: str) -> None:
    # Model 1 could start at 30 - 6 = 24 ms, model 2 at 32 - 15 = 17 ms: its deadline is later, its batch larger.
    assert order(contended(policy, [30.0], [32.0] * 10))[0] == 2


def test_where_all_fit_the_one_that_can_wait_least_goes_first() -> None:
    # At 6 ms model 1 runs to 12 ms; model 2 needs to start by 22 ms.
    assert order(contended("adaptive", [18.0], [28.0])) == [1, 2]


def test_where_not_all_fit_the_smallest_batch_stands_back() -> None:
    # Model 1 must start by 6 ms and runs to 12; model 2 must start by 7: one of them is lost, and 2 has more requests.
    assert order(contended("adaptive", [12.0], [17.0] * 5)) == [2]


def test_one_that_is_lost_in_any_case_holds_up_nobody() -> None:
    # Models 1 and 2 cannot both be in time; model 3 can wait for whoever goes first.
    assert order(contended("adaptive", [12.5], [12.0], [40.0])) in ([1, 3], [2, 3])


def test_of_many_models_those_are_served_that_fit() -> None:
    queues = [[12.0 + 6 * i] for i in range(40)]
    found = order(contended("adaptive", *queues))
    assert found == list(range(1, 41))
