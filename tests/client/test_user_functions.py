"""Users' functions in clients and gateways: whatever they do, their request ends by its deadline, and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from symphony_dask import Ensemble, Pipeline
from symphony_dask.client import user_functions
from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.client.stages import as_stage
from symphony_dask.errors import BadInput, DeadlineExceeded, DeploymentError, ModelError, SymphonyError
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.gateway_process import GatewayProcess, tensor
from tests.helpers.serving import LIMIT_S, QUICK

Deploy = Callable[..., Model]
MS = 1_000_000


class Frozen(Exception):
    """Nobody can write to it."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


class Silent(Exception):
    """It has no text."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Unsendable(Exception):
    """It cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def raising(error: BaseException) -> Callable[[Any], Any]:
    def raises(x: Any) -> Any:
        raise error

    return raises


def first_of_nothing(x: Any) -> Any:
    return next(iter([]))


def exit_program(x: Any) -> Any:
    raise SystemExit(1)


def sleep_for_ever(x: Any) -> Any:
    while True:
        time.sleep(0.05)


def loop_for_ever(x: Any) -> Any:
    while True:
        pass


class ExitsWhenRead:
    """A function that ends the program which unpickles it."""

    def __call__(self, x: Any) -> Any:
        return x

    def __reduce__(self) -> Any:
        return exit_program, (0,)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(LIMIT_S)
    loop.close()


Lead = Callable[..., InferenceFuture]


@pytest.fixture
def lead(loop: asyncio.AbstractEventLoop) -> Lead:
    """Sends a request through a pipeline that has no models."""

    def lead(stages: Any, x: Any = 1, slo: str = "60s") -> InferenceFuture:
        pipeline = Pipeline("p", as_stage(stages), 60_000 * MS, None, {}, loop, None)  # type: ignore[arg-type]
        return pipeline.submit(x, slo=slo)

    return lead


ENDS_NOTHING_ELSE = [
    pytest.param(first_of_nothing, "first_of_nothing() raised StopIteration", id="StopIteration"),
    pytest.param(raising(StopAsyncIteration()), "raises() raised StopAsyncIteration", id="StopAsyncIteration"),
    pytest.param(exit_program, "exit_program() raised SystemExit: 1", id="SystemExit"),
    pytest.param(raising(KeyboardInterrupt()), "raises() raised KeyboardInterrupt", id="KeyboardInterrupt"),
    pytest.param(raising(GeneratorExit()), "raises() raised GeneratorExit", id="GeneratorExit"),
    pytest.param(raising(asyncio.CancelledError()), "raises() raised CancelledError", id="CancelledError"),
    pytest.param(raising(Frozen("no")), "raises() raised Frozen: no", id="cannot be written to"),
    pytest.param(raising(Silent()), "raises() raised Silent: <Silent that cannot be written>", id="has no text"),
]


@pytest.mark.parametrize(("function", "text"), ENDS_NOTHING_ELSE)
@pytest.mark.parametrize("where", ["stage", "combine", "member"])
def test_what_ends_programs_loops_and_generators_ends_its_request_alone(
    lead: Lead, where: str, function: Callable[[Any], Any], text: str
) -> None:
    stages = {
        "stage": [function],
        "combine": Ensemble([str, str], combine=function),
        "member": Ensemble([str, [str, function]], combine="vote"),
    }
    future = lead(stages[where])
    error = future.exception(LIMIT_S)
    assert isinstance(error, ModelError)
    assert str(error).splitlines()[0] == text
    assert future.outcome == "failed"
    assert lead([str]).result(LIMIT_S) == "1"


def test_other_errors_are_raised_as_they_are(lead: Lead) -> None:
    assert isinstance(lead([raising(Unsendable())]).exception(LIMIT_S), Unsendable)


@pytest.mark.parametrize("where", ["stage", "combine", "member"])
@pytest.mark.parametrize("function", [sleep_for_ever, loop_for_ever])
def test_a_function_that_never_returns_ends_its_request_at_the_deadline(
    lead: Lead, where: str, function: Callable[[Any], Any]
) -> None:
    stages = {
        "stage": [function],
        "combine": Ensemble([str, str], combine=function),
        "member": Ensemble([str, [str, function]], combine="vote"),
    }
    future = lead(stages[where], slo="200ms")
    with pytest.raises(DeadlineExceeded, match=rf"{function.__name__}\(\) had not returned when the deadline passed"):
        future.result(LIMIT_S)
    assert future.outcome == "dropped"
    assert lead([str]).result(LIMIT_S) == "1"


def test_a_function_that_hangs_is_interrupted_and_its_thread_ends(lead: Lead) -> None:
    threads = []

    def hangs(x: Any) -> Any:
        threads.append(threading.current_thread())
        loop_for_ever(x)

    with pytest.raises(DeadlineExceeded):
        lead([hangs], slo="100ms").result(LIMIT_S)
    wait_until(lambda: not threads[0].is_alive(), "the end of the thread")


def test_a_function_that_ignores_the_interrupt_holds_its_own_threads_alone(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_functions, "THREADS", 2)
    released = threading.Event()

    def stubborn(x: Any) -> Any:
        released.wait()
        return x

    pipeline = Pipeline("p", as_stage([stubborn, str]), 60_000 * MS, None, {}, loop, None)  # type: ignore[arg-type]
    hung = pipeline.map(range(2), slo="200ms")
    assert all(isinstance(future.exception(LIMIT_S), DeadlineExceeded) for future in hung)
    third = pipeline.submit(3, slo="100ms")
    with pytest.raises(DeadlineExceeded, match=r"was not called before the deadline: 2 calls of it have not returned"):
        third.result(LIMIT_S)
    other = Pipeline("o", as_stage([str]), 60_000 * MS, None, {}, loop, None)  # type: ignore[arg-type]
    assert other.submit(4).result(LIMIT_S) == "4"
    released.set()
    assert pipeline.submit(5).result(LIMIT_S) == "5"


def test_no_more_calls_of_a_function_run_at_once_than_it_has_threads(
    lead: Lead, loop: asyncio.AbstractEventLoop
) -> None:
    running, most, lock = set(), [0], threading.Lock()

    def count(x: Any) -> Any:
        with lock:
            running.add(x)
            most[0] = max(most[0], len(running))
        time.sleep(0.01)
        with lock:
            running.discard(x)
        return x

    pipeline = Pipeline("p", as_stage([count]), 60_000 * MS, None, {}, loop, None)  # type: ignore[arg-type]
    assert [f.result(LIMIT_S) for f in pipeline.map(range(50))] == list(range(50))
    assert 1 < most[0] <= user_functions.THREADS


def test_a_request_that_is_cancelled_leaves_the_function_and_its_thread(lead: Lead) -> None:
    began, threads = threading.Event(), []

    def hangs(x: Any) -> Any:
        threads.append(threading.current_thread())
        began.set()
        sleep_for_ever(x)

    future = lead([hangs])
    assert began.wait(LIMIT_S)
    assert future.cancel()
    wait_until(lambda: not threads[0].is_alive(), "the end of the thread")


def test_threads_without_work_end(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_functions, "IDLE_S", 0.05)
    threads = []
    lead([lambda x: threads.append(threading.current_thread())]).result(LIMIT_S)
    wait_until(lambda: not threads[0].is_alive(), "the end of the thread")


def test_requests_from_within_a_function_have_its_deadline(lead: Lead) -> None:
    from symphony_dask.client.deadline import remaining_ns

    left_ns = lead([lambda x: remaining_ns()], slo="10s").result(LIMIT_S)
    assert 0 < left_ns <= 10_000 * MS


def test_no_function_is_called_after_the_deadline(lead: Lead) -> None:
    called: list[Any] = []
    with pytest.raises(DeadlineExceeded):
        lead([lambda x: time.sleep(0.2), called.append], slo="100ms").result(LIMIT_S)
    assert called == []


def test_callbacks_that_raise_anything_keep_no_others_from_being_called() -> None:
    future, called = InferenceFuture(), []
    for error in (SystemExit(1), StopIteration(), Silent(), KeyboardInterrupt()):
        future.add_done_callback(raising(error))
    future.add_done_callback(called.append)
    future._finish("ok", 1, None)
    assert called == [future]


def test_what_cannot_be_shown_says_so_in_a_notebook() -> None:
    class Unseen:
        def __repr__(self) -> str:
            raise SystemExit(1)

    future, failed = InferenceFuture(), InferenceFuture()
    future._finish("ok", Unseen(), None)
    failed._finish("failed", None, Silent())
    assert "it cannot be shown: SystemExit: 1" in future._repr_html_()
    assert "Silent: &lt;Silent that cannot be written&gt;" in failed._repr_html_()


# On a cluster


def test_functions_that_end_loops_leave_the_client_as_it_is(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    name = f"{model.name}-pipeline"
    for function in (exit_program, first_of_nothing, sleep_for_ever):
        pipeline = serving.pipeline(name, [model, function], slo="2s")
        assert isinstance(pipeline.submit(np.array([1.0])).exception(LIMIT_S), SymphonyError)
    model.submit(np.array([1.0])).add_done_callback(exit_program)
    assert serving.pipeline(name, [model], slo="60s")(np.array([2.0])).tolist() == [4.0]
    serving.undeploy(name)
    assert serving.status()["models"][model.name]["outcomes"]["failed"] == 0


def test_a_pipeline_whose_functions_cannot_be_loaded_ends_nobody(cluster: Cluster, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    with Serving(cluster.client()) as serving, Serving(cluster.client()) as other:
        serving.pipeline("exits", [model, ExitsWhenRead()], slo="60s")
        with pytest.raises(DeploymentError, match=r"'exits' cannot be led by this process.*: SystemExit: 1"):
            other.find("exits")
        assert other.find(model.name)(np.array([1.0])).tolist() == [2.0]
        serving.undeploy("exits")


def test_a_function_that_cannot_be_sent_is_named(serving: Serving, deploy: Deploy) -> None:
    model, lock = deploy(models.double, profile=QUICK), threading.Lock()

    def locked(x: Any) -> Any:
        with lock:
            return x

    with pytest.raises(
        BadInput,
        match=r"function locked\(\) cannot be sent, TypeError: cannot pickle '_thread.lock' object: have it create",
    ):
        serving.pipeline("locked", [model, locked], slo="60s")


def test_a_function_cannot_end_the_gateway_or_hold_it_up(cluster: Cluster, serving: Serving, deploy: Deploy) -> None:
    pytest.importorskip("uvicorn")
    model = deploy(models.double, example=np.zeros(2, np.float32), profile="0.1,0.5")
    x = tensor([1, 2], [1, 2])

    expected = {
        "exits": (exit_program, 500, "exit_program() raised SystemExit: 1"),
        "stops": (first_of_nothing, 500, "first_of_nothing() raised StopIteration"),
        "silent": (raising(Silent()), 500, "raises() raised Silent: <Silent that cannot be written>"),
        "sleeps": (sleep_for_ever, 504, "sleep_for_ever() had not returned when the deadline passed"),
        "loops": (loop_for_ever, 504, "loop_for_ever() had not returned when the deadline passed"),
        "odd": (lambda x: object(), 500, "the answer of pipeline 'odd' cannot be sent"),
    }
    with GatewayProcess(cluster.address) as gateway:
        for name, (function, status, text) in expected.items():
            serving.pipeline(name, [model, function], slo="2s")
            try:
                wait_until(lambda: gateway.get(f"/v2/models/{name}").status == 200, "the pipeline")  # noqa: B023
                answer = gateway.infer(name, x)
                assert (answer.status, text in answer.error) == (status, True), (name, answer.error)
                assert gateway.infer(model.name, x).status == 200
            finally:
                serving.undeploy(name)
        serving.pipeline("exits-when-read", [model, ExitsWhenRead()], slo="1s")
        try:
            assert gateway.infer("exits-when-read", x).status == 404
        finally:
            serving.undeploy("exits-when-read")
        assert gateway.infer(model.name, x).status == 200
