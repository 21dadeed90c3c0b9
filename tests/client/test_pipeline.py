"""Pipelines and ensembles: what they answer, how their deadline is passed on, what other clients see of them."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from symphony_dask import Ensemble, Pipeline, Serving
from symphony_dask.client import stages
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import ModelRef
from symphony_dask.client.stages import as_stage, describe, from_plain, mean, models_of, to_plain, vote
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput, DeadlineExceeded, ModelError, Overloaded, SymphonyError, UnknownModel
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from tests.helpers.serving import LIMIT_S, PLACES, QUICK, occupy, outcomes, queued

Deploy = Callable[..., Model]
MS = 1_000_000


def half(x: Any) -> Any:
    return x / 2


# What pipelines are made of


def test_stages_are_written_as_lists_names_functions_and_ensembles() -> None:
    stage = as_stage(["a", half, Ensemble(["b", ["c", half]]), ModelRef("a")])
    assert describe(stage) == "a -> half() -> mean(b, c -> half()) -> a"
    assert models_of(stage) == ["a", "b", "c"]


def test_stages_are_the_same_after_the_scheduler_kept_them() -> None:
    stage = as_stage(["a", half, Ensemble(["b", "c"], combine="vote"), Ensemble(["d"], combine=half)])
    assert from_plain(to_plain(stage)) == stage


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ([], "an empty list of stages"),
        (["a", 3], "stage 3 is a int: give the name of a model"),
        ([""], "stage '' is a str"),
        (Ensemble([]), "an Ensemble has no members"),
        (Ensemble(["a"], combine="median"), "combine='median': give one of 'mean', 'vote' or a function"),
    ],
)
def test_stages_that_are_none_are_refused(wrong: Any, text: str) -> None:
    with pytest.raises(BadInput, match=text):
        as_stage(wrong)


def test_the_mean_is_of_numbers_arrays_and_what_holds_them() -> None:
    assert mean([1, 2]) == 1.5
    found = mean([np.array([1.0, 2.0], np.float32), np.array([3.0, 6.0], np.float32)])
    assert (found.tolist(), found.dtype) == ([2.0, 4.0], np.float32)
    assert mean([np.array([1, 2]), np.array([2, 2])]).tolist() == [1.5, 2.0]
    assert mean([{"a": 1, "b": (2, 4)}, {"a": 3, "b": (4, 4)}]) == {"a": 2.0, "b": (3.0, 4.0)}


def test_the_mean_of_tensors_is_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    assert mean([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])]).tolist() == [2.0, 2.0]
    assert mean([torch.tensor([1]), torch.tensor([2])]).tolist() == [1.5]


def test_members_vote_by_label_or_by_their_largest_score() -> None:
    assert vote(["cat", "dog", "dog"]) == "dog"
    assert vote(["cat", "dog"]) == "cat"
    assert vote([np.array([0.1, 0.9]), np.array([0.8, 0.2]), np.array([0.3, 0.7])]) == 1
    assert vote([np.int64(2), np.array([2]), 5]) == 2


# How the deadline is passed on


class Fake:
    """A model that keeps what it is asked and answers when the test says so."""

    def __init__(self, alpha: float, beta: float) -> None:
        self.profiles = {"fast": LatencyProfile(alpha, beta, 4), "slow": LatencyProfile(alpha * 9, beta * 9, 8)}
        self.asked: list[dict[str, Any]] = []
        self.futures: list[InferenceFuture] = []

    def submit(self, x: Any, **options: Any) -> InferenceFuture:
        self.asked.append({"x": x, **options})
        self.futures.append(InferenceFuture(len(self.futures)))
        return self.futures[-1]

    @property
    def slos_ms(self) -> list[float]:
        return [round(asked["slo"] * 1e3, 3) for asked in self.asked]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop

    async def cancel_all() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(LIMIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock of one entry, ns, which only the test moves."""
    clock = [0]
    for module in ("pipeline", "deadline"):
        monkeypatch.setattr(f"symphony_dask.client.{module}.now_ns", lambda: clock[0])
    return clock


class Steps:
    """A pipeline of fakes: b + 3 ms, then 2b and 2b ms side by side, which gain nothing from batches.

    A batch needs twice its time, so 16 ms are split into 12, for batches of 3, and 4.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first, self.left, self.right = Fake(1, 3), Fake(2, 0), Fake(2, 0)
        fakes: dict[str, Any] = {"first": self.first, "left": self.left, "right": self.right}

        async def find(name: str) -> Any:
            raise UnknownModel(name)

        self.pipeline = Pipeline(
            "steps", as_stage(["first", Ensemble(["left", "right"])]), 16 * MS, None, fakes, loop, find
        )


@pytest.fixture
def steps(loop: asyncio.AbstractEventLoop, clock: list[int]) -> Steps:
    return Steps(loop)


def answer(fake: Fake, result: Any, n: int = 0) -> None:
    wait_until(lambda: len(fake.futures) > n, "the request to a stage")
    fake.futures[n]._finish("ok", result, None)


def test_stages_have_the_budgets_that_cost_the_least(steps: Steps) -> None:
    assert steps.pipeline.budgets() == [("first", 12 * MS, 3), ("left", 4 * MS, 1), ("right", 4 * MS, 1)]


def test_a_stage_that_is_early_leaves_its_time_to_the_next(steps: Steps, clock: list[int]) -> None:
    future = steps.pipeline.submit(7, priority=3, retries=2)
    wait_until(lambda: steps.first.futures, "the first stage")
    assert steps.first.asked == [{"x": 7, "slo": 0.012, "priority": 3, "retries": 2}]
    clock[0] = 9 * MS
    answer(steps.first, 8)
    answer(steps.left, 10)
    answer(steps.right, 20)
    assert (future.result(LIMIT_S), future.outcome) == (15.0, "ok")
    assert (steps.left.slos_ms, steps.right.slos_ms) == ([7.0], [7.0])
    assert steps.left.asked[0]["x"] == 8


def test_a_stage_that_is_late_takes_time_from_the_next(steps: Steps, clock: list[int]) -> None:
    future = steps.pipeline.submit(7)
    wait_until(lambda: steps.first.futures, "the first stage")
    clock[0] = 13 * MS
    answer(steps.first, 8)
    wait_until(lambda: steps.right.futures, "the second stage")
    assert (steps.left.slos_ms, steps.right.slos_ms) == ([3.0], [3.0])
    clock[0] = 30 * MS
    answer(steps.left, 1)
    answer(steps.right, 1)
    assert (future.result(LIMIT_S), future.outcome) == (1.0, "late")


def test_no_stage_is_asked_after_the_deadline(steps: Steps, clock: list[int]) -> None:
    future = steps.pipeline.submit(7)
    wait_until(lambda: steps.first.futures, "the first stage")
    clock[0] = 17 * MS
    answer(steps.first, 8)
    with pytest.raises(DeadlineExceeded, match="the deadline passed 1ms before the stage 'left' began"):
        future.result(LIMIT_S)
    assert (future.outcome, steps.left.asked, steps.right.asked) == ("dropped", [], [])


def test_an_slo_of_a_request_is_split_as_that_of_the_pipeline(steps: Steps) -> None:
    steps.pipeline.submit(7, slo="48ms")
    wait_until(lambda: steps.first.futures, "the first stage")
    assert steps.first.slos_ms == [36.0]


def test_a_member_that_fails_ends_the_request_and_the_other_members(steps: Steps) -> None:
    future = steps.pipeline.submit(7)
    answer(steps.first, 8)
    wait_until(lambda: steps.left.futures and steps.right.futures, "both members")
    steps.left.futures[0]._finish("rejected", None, Overloaded("full"))
    error = future.exception(LIMIT_S)
    assert isinstance(error, Overloaded)
    assert error.__notes__ == ["in pipeline 'steps': first -> mean(left, right)"]
    assert future.outcome == "rejected"
    assert steps.right.futures[0].cancelled()


def test_cancelling_a_request_cancels_the_stage_under_way(steps: Steps) -> None:
    future = steps.pipeline.submit(7)
    wait_until(lambda: steps.first.futures, "the first stage")
    assert future.cancel()
    wait_until(lambda: steps.first.futures[0].cancelled(), "the end of the stage")
    assert future.outcome == "cancelled"


def test_a_higher_rate_may_split_otherwise(steps: Steps) -> None:
    # At 2,000 a second a batch of 4 needs 7 ms and 2 to gather.
    steps.pipeline.resplit(2000.0)
    assert [batch for _, _, batch in steps.pipeline.budgets()] == [4, 1, 1]
    with pytest.raises(BadInput, match="rate_hz=0: give a number of requests a second above 0"):
        steps.pipeline.resplit(0)


def test_time_is_kept_free_for_the_functions_to_come(loop: asyncio.AbstractEventLoop, clock: list[int]) -> None:
    first = Fake(1, 3)

    def slow(x: Any) -> Any:
        clock[0] += 4 * MS
        return x

    pipeline = Pipeline("kept", as_stage(["first", slow]), 16 * MS, None, {"first": first}, loop, None)  # type: ignore
    for i in range(2):
        clock[0] = 0
        future = pipeline.submit(7)
        answer(first, 8, i)
        assert future.result(LIMIT_S) == 8
    # An estimate grows by 1 ms at once, at most: 1 ms and a deviation of half of it, four times.
    assert first.slos_ms == [16.0, 13.0]


def test_a_pipeline_is_not_pickled_but_found(steps: Steps) -> None:
    with pytest.raises(BadInput, match=r"use serving\.find\('steps'\)"):
        pickle.dumps(steps.pipeline)


def test_a_pipeline_prints_its_stages(steps: Steps) -> None:
    assert repr(steps.pipeline) == "<Pipeline 'steps': first -> mean(left, right), SLO 16ms>"
    assert "4ms" in steps.pipeline._repr_html_()


# On a cluster


@pytest.fixture
def declare(serving: Serving, request: pytest.FixtureRequest) -> Iterator[Callable[..., Pipeline]]:
    """``serving.pipeline`` under the test's name, forgotten after the test."""
    name = f"pipeline-{request.node.name}"

    def declare(what: Any, **options: Any) -> Pipeline:
        made: Pipeline = serving.pipeline(name, what, **{"slo": "60s", **options})
        return made

    yield declare
    try:
        serving.undeploy(name)
    except SymphonyError:
        pass


def triple(batch: Any) -> Any:
    return batch * 3


def test_a_chain_with_a_function_answers(deploy: Deploy, declare: Any) -> None:
    double, thrice = deploy(models.double, profile=QUICK), deploy(triple, profile=QUICK)
    pipeline = declare([double, half, thrice])
    assert pipeline(np.array([5.0])).tolist() == [15.0]
    futures = pipeline.map(np.array([float(i)]) for i in range(50))
    assert [f.result(LIMIT_S)[0] for f in futures] == [3.0 * i for i in range(50)]
    assert {f.outcome for f in futures} == {"ok"}


def test_an_ensemble_combines_the_answers_of_its_members(deploy: Deploy, declare: Any) -> None:
    double, thrice = deploy(models.double, profile=QUICK), deploy(triple, profile=QUICK)
    x = np.array([2.0, 4.0])
    assert declare(Ensemble([double, thrice]))(x).tolist() == [5.0, 10.0]
    assert declare(Ensemble([double, thrice], combine="vote"))(x) == 1
    assert declare(Ensemble([double, [thrice, half]], combine=lambda a: a[0] - a[1]))(x).tolist() == [1.0, 2.0]


def test_requests_of_a_pipeline_are_batched_with_all_others(
    serving: Serving, deploy: Deploy, declare: Any, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK)
    pipeline = declare([model])
    first = occupy(serving, model)
    later = [*pipeline.map(np.array([1.0]) for _ in range(10)), *model.map(np.array([1.0]) for _ in range(10))]
    wait_until(lambda: queued(serving, model) == 20, "queued requests of both kinds")
    gate.open()
    assert all(f.result(LIMIT_S) is not None for f in [*first, *later])
    assert serving.status()["models"][model.name]["batches"] == PLACES + 1


def test_other_clients_find_a_pipeline(cluster: Cluster, deploy: Deploy, declare: Any) -> None:
    pipeline = declare([deploy(models.double, profile=QUICK), half], rate_hz=50)
    with Serving(cluster.client()) as other:
        found = other.model(pipeline.name)
        assert isinstance(found, Pipeline)
        assert (found.slo_ns, found.rate_hz) == (60 * 10**9, 50)
        assert found(np.array([3.0])).tolist() == [3.0]


def test_a_new_version_of_a_model_serves_in_the_pipeline(serving: Serving, deploy: Deploy, declare: Any) -> None:
    model = deploy(models.double, profile=QUICK)
    pipeline = declare([model])
    assert pipeline(np.array([1.0])).tolist() == [2.0]
    serving.deploy(model.name, triple, slo="60s", profile=QUICK)
    assert pipeline(np.array([1.0])).tolist() == [3.0]
    serving.undeploy(model.name, force=True)
    serving.deploy(model.name, models.double, slo="60s", profile=QUICK)
    assert pipeline(np.array([1.0])).tolist() == [2.0]


def test_what_a_model_or_function_raises_is_raised_with_where(deploy: Deploy, declare: Any) -> None:
    model = deploy(models.divide, profile=QUICK)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        declare([model])(0.0)
    future = declare([model, lambda x: {}[x]]).submit(2.0)
    error = future.exception(LIMIT_S)
    assert isinstance(error, KeyError)
    assert error.__notes__[0] == "raised by <lambda>()"
    assert future.outcome == "failed"


def test_names_of_models_and_pipelines_are_kept_apart(serving: Serving, deploy: Deploy, declare: Any) -> None:
    model = deploy(models.double, profile=QUICK)
    with pytest.raises(BadInput, match="has the name of a model that is deployed"):
        serving.pipeline(model.name, [model], slo="1s")
    pipeline = declare([model])
    with pytest.raises(BadInput, match="has the name of a pipeline"):
        serving.deploy(pipeline.name, models.double, slo="1s", profile=QUICK)


def test_a_pipeline_that_cannot_be_is_refused(serving: Serving, deploy: Deploy, declare: Any) -> None:
    with pytest.raises(UnknownModel, match="'nothing' is not deployed"):
        declare(["nothing"])
    model = deploy(models.double, profile="1,19")
    with pytest.raises(BadInput, match="SLO 30ms cannot be met: one request alone takes 40ms through all stages"):
        declare([model, model], slo="30ms")


def test_a_pipeline_is_forgotten_when_it_is_undeployed(serving: Serving, deploy: Deploy, declare: Any) -> None:
    model = deploy(models.double, profile=QUICK)
    pipeline = declare([model])
    serving.undeploy(pipeline.name)
    with pytest.raises(UnknownModel, match="and the pipelines"):
        serving.find(pipeline.name)
    assert model(np.array([1.0])).tolist() == [2.0]


def test_a_deadline_reaches_every_stage(serving: Serving, deploy: Deploy, declare: Any) -> None:
    model = deploy(models.slow, profile="0.1,0.1")
    pipeline = declare([model, model])
    future = pipeline.submit(np.array([1.0]), slo="480ms")  # the first stage alone takes 500 ms
    with pytest.raises(DeadlineExceeded, match="before the stage"):
        future.result(LIMIT_S)
    assert outcomes(serving, model) == {"late": 1}


def test_combine_names_are_those_of_the_document() -> None:
    assert set(stages.COMBINE) == {"mean", "vote"}
