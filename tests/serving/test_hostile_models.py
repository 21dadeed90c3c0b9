"""What models raise, return and say, whatever it is, ends the requests that it belongs to and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from symphony_dask.backends import BatchRunner
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, DeploymentError, ModelError, NoGPUWorker
from symphony_dask.slot.executor import Slot
from symphony_dask.slot.runtime import SlotWorker
from symphony_dask.text import MOST_CHARS
from symphony_dask.wire.connection import Message
from symphony_dask.wire.messages import Done
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.gateway_process import GatewayProcess, tensor
from tests.helpers.slots import Answers, on_slot, small

Deploy = Callable[..., Model]
LIMIT_S = 60
PROFILE = (0.01, 1.0)


@pytest.fixture
def hostile(deploy: Deploy) -> Model:
    return deploy(models.hostile, profile=PROFILE)


def failure(model: Model, sample: Any) -> str:
    """The text of the ``ModelError`` that a request ends with."""
    with pytest.raises(ModelError) as caught:
        model.submit(sample).result(LIMIT_S)
    return str(caught.value)


def answers(model: Model, samples: list[Any]) -> list[Any]:
    """Results, and the last lines of errors in their places."""
    found = []
    for future in model.map(samples):
        error = future.exception(LIMIT_S)
        found.append(str(error).strip().splitlines()[-1] if error is not None else future.result())
    return found


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("surrogate", "ValueError: x \\udce9"),
        ("mute", "Mute"),
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("cancelled", "CancelledError"),
        ("generator", "GeneratorExit"),
        ("odd", "Odd"),
        ("notes", "note \\udce9"),
        ("group", "KeyError: '\\udce9'"),
        ("controls", "RuntimeError: \\x1b[31m\\x00"),
    ],
)
def test_whatever_a_model_raises_arrives_as_a_model_error_and_the_slots_go_on(
    hostile: Model, what: str, words: str
) -> None:
    for _ in range(6):  # more than two slots with two batches each could lose
        assert words in failure(hostile, what)
    assert hostile.submit("fine").result(LIMIT_S) == "fine"


def test_a_huge_text_is_cut_for_one_request_and_for_a_thousand(hostile: Model) -> None:
    text = failure(hostile, "huge")
    assert len(text) <= MOST_CHARS
    assert text.rstrip().endswith("x the end")
    errors = [future.exception(LIMIT_S) for future in hostile.map(["huge"] * 1000)]
    assert all(isinstance(error, ModelError) for error in errors)
    assert hostile.submit("fine").result(LIMIT_S) == "fine"


def test_one_request_fails_alone_where_its_answer_is_an_exception_or_cannot_be_sent(deploy: Deploy) -> None:
    model = deploy(models.picky, profile=PROFILE)
    samples = ["1", "x", "object", "surrogate", "mute", "5"]
    for _ in range(3):
        found = answers(model, samples)
        assert found[:2] == [1, "ValueError: x is no number"]
        assert found[2].startswith("symphony_dask.errors.BadInput: cannot send a object")
        assert found[3].startswith("symphony_dask.errors.BadInput: cannot send this str")
        assert found[4].endswith("Mute: <exception str() failed>")
        assert found[5] == 5


def test_an_answer_that_is_an_exception_fails_its_dask_task_alone(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.picky, profile=PROFILE)
    futures = serving.client.map(model, ["1", "x", "3"], pure=False)
    assert (futures[0].result(LIMIT_S), futures[2].result(LIMIT_S)) == (1, 3)
    with pytest.raises(ModelError, match="ValueError: x is no number"):
        futures[1].result(LIMIT_S)


def test_what_a_model_raises_in_a_dask_task_errs_the_task_and_the_slot_goes_on(
    serving: Serving, deploy: Deploy
) -> None:
    model = deploy(models.hostile, profile=PROFILE)
    for what, words in (("surrogate", "udce9"), ("mute", "Mute"), ("exit", "SystemExit: 3")):
        with pytest.raises(ModelError, match=words):
            serving.client.submit(model, what, pure=False).result(LIMIT_S)
    assert serving.client.submit(model, "fine", pure=False).result(LIMIT_S) == "fine"


def test_an_answer_that_is_an_exception_fails_its_request_to_a_pipeline(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.picky, profile=PROFILE)
    pipeline = serving.pipeline("picks", [model.name, lambda x: x + 1], slo="60s")
    try:
        futures = pipeline.map(["1", "x"])
        assert futures[0].result(LIMIT_S) == 2
        with pytest.raises(ModelError, match="ValueError: x is no number"):
            futures[1].result(LIMIT_S)
    finally:
        serving.undeploy("picks")


def test_a_torch_module_may_return_an_exception_for_a_sample(deploy: Deploy) -> None:
    pytest.importorskip("torch")
    model = deploy(models.no_negatives, profile=PROFILE, example=np.ones(2, np.float32))
    futures = model.map([np.array([1, 2], np.float32), np.array([-1, 2], np.float32), np.array([3, 4], np.float32)])
    assert futures[0].result(LIMIT_S).tolist() == [2, 4]
    assert futures[2].result(LIMIT_S).tolist() == [6, 8]
    with pytest.raises(ModelError, match="ValueError: negative"):
        futures[1].result(LIMIT_S)


@pytest.mark.parametrize("what", ["surrogate", "mute", "exit", "huge", "odd"])
def test_a_loader_may_raise_anything_and_the_next_deployment_comes_up(
    serving: Serving, deploy: Deploy, what: str
) -> None:
    with pytest.raises(DeploymentError) as caught:
        serving.deploy("never", models.HostileLoader(what), slo="60s", profile=PROFILE)
    assert len(str(caught.value)) <= MOST_CHARS
    assert deploy(models.double, profile=PROFILE).submit(np.ones(1)).result(LIMIT_S) == [2]


@pytest.mark.parametrize("what", ["surrogate", "mute", "exit", "interrupt"])
def test_a_model_may_raise_anything_on_its_example_and_when_it_is_measured(
    serving: Serving, deploy: Deploy, what: str
) -> None:
    for profile in (PROFILE, None):
        with pytest.raises(DeploymentError):
            serving.deploy("never", models.hostile, slo="60s", profile=profile, example=what)
    with pytest.raises(DeploymentError):  # it takes its example, and the larger batches of the measurement no more
        serving.deploy("never", models.HostileLater(what), slo="60s", example="fine")
    assert deploy(models.double, profile=PROFILE).submit(np.ones(1)).result(LIMIT_S) == [2]


@pytest.mark.parametrize("name", ["\ud800", "x" * 300, "bell\x07", "two\nlines", ""])
def test_a_name_that_cannot_be_printed_or_is_too_long_is_refused(serving: Serving, name: str) -> None:
    for declare in (
        lambda: serving.deploy(name, models.double, slo="60s", profile=PROFILE),
        lambda: serving.pipeline(name, [lambda x: x], slo="60s"),
    ):
        with pytest.raises(BadInput, match="name"):
            declare()


def test_an_example_of_many_names_or_deep_lists_is_served(serving: Serving, deploy: Deploy) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    for example in ({f"k{i}": i for i in range(5_000)}, deep, {"x" * 100_000: 1}, [[1, [2, [3]]]] * 5_000):
        model = deploy(models.lengths, profile=PROFILE, example=example)
        assert model.submit(example).result(LIMIT_S) == len(example)
        (row,) = [row for row in serving.deployed() if row["name"] == model.name]
        assert len(repr(row["takes"])) < 10_000


# Over HTTP


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, serving: Serving) -> Iterator[GatewayProcess]:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    with GatewayProcess(cluster.address) as gateway:
        yield gateway


def texts(*values: str) -> dict[str, Any]:
    return {"name": "input", "datatype": "BYTES", "shape": [len(values)], "data": list(values)}


def test_over_http_a_model_that_raises_a_lone_surrogate_is_500_and_serves_on(
    gateway: GatewayProcess, deploy: Deploy
) -> None:
    model = deploy(models.hostile, profile=PROFILE, example="fine")
    for _ in range(6):
        answer = gateway.infer(model.name, texts("surrogate"))
        assert answer.status == 500
        assert "ValueError: x \\udce9" in answer.error
    assert gateway.infer(model.name, texts("\ud800")).status == 400
    assert gateway.infer(model.name, texts("fine")).json["outputs"][0]["data"] == ["fine"]


def test_over_http_an_answer_that_is_an_exception_is_500_with_its_text(gateway: GatewayProcess, deploy: Deploy) -> None:
    model = deploy(models.no_negatives, profile=PROFILE, example=np.ones(2, np.float32))
    answer = gateway.infer(model.name, tensor([-1, 2], [1, 2]))
    assert (answer.status, answer.error.strip()) == (500, "ValueError: negative")
    assert gateway.infer(model.name, tensor([1, 2], [1, 2])).status == 200


def test_slots_behind_batches_that_do_not_come_back_are_not_ready_until_they_do(
    gateway: GatewayProcess, serving: Serving, deploy: Deploy, gate: models.Gate
) -> None:
    model = deploy(gate.model(), profile=PROFILE, max_batch=1)

    def states() -> set[str]:
        return {slot["state"] for worker in serving.status()["workers"].values() for slot in worker["health"]}

    wait_until(lambda: gateway.get(f"/v2/models/{model.name}/ready").status == 200, "the model to be ready")
    assert (states(), gateway.get("/v2/health/ready").status) == ({"ready"}, 200)
    futures = model.map([np.ones(1)] * 4)  # two at each slot
    wait_until(lambda: states() == {"stalled"}, "the slots to be stalled")
    wait_until(lambda: gateway.get(f"/v2/models/{model.name}/ready").status == 503, "the model not to be ready")
    assert gateway.get("/v2/health/ready").error == "no GPU serves any of the models that are deployed"
    with pytest.raises(NoGPUWorker):
        serving.wait_ready(timeout="50ms")
    gate.open()
    assert [future.result(LIMIT_S) for future in futures] == [[2.0]] * 4
    assert serving.wait_ready(gpus=2) == 2
    wait_until(lambda: gateway.get("/v2/health/ready").status == 200, "the gateway to be ready")


# A slot


def test_a_slot_whose_answers_cannot_be_sent_says_so_and_runs_the_next_batch() -> None:
    class Breaks(Answers):
        def send(self, message: Message, *parts: Any) -> None:
            if isinstance(message, Done) and not message.failures:
                raise RuntimeError("no room")
            super().send(message, *parts)

    async def run() -> None:
        slot = Slot(0, None)
        slot.runners[1] = BatchRunner(lambda samples: samples)
        worker = SlotWorker("tcp://w", [slot], "cpu", graph_batches=None, _specs={1: b""})  # type: ignore[arg-type]
        worker._loop = asyncio.get_running_loop()
        worker.connection = broken = Breaks(2)  # type: ignore[assignment]
        worker._start_batch(small(0, 1))
        worker._start_batch(small(1, 1))
        async with asyncio.timeout(60):
            await broken.all_here.wait()
        slot.stop()
        assert [done.batch for done in broken.done()] == [0, 1]
        assert broken.done()[0].failures[0].text == "its answer cannot be sent: RuntimeError: no room"

    asyncio.run(run())


def test_a_model_whose_staging_raises_fails_its_batch() -> None:
    class Staged:
        def stage(self, samples: Any) -> Any:
            raise SystemExit(4)

        def __call__(self, samples: Any) -> Any:
            return samples

    async def run() -> None:
        slot = Slot(0, None)
        slot.runners[1] = BatchRunner(Staged())
        worker = SlotWorker("tcp://w", [slot], "cpu", graph_batches=None, _specs={1: b""})  # type: ignore[arg-type]
        worker._loop = asyncio.get_running_loop()
        worker.connection = answers = Answers(1)  # type: ignore[assignment]
        worker._stage(answers, small(0, 1), slot.runners[1])  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            await answers.all_here.wait()
        slot.stop()
        assert "SystemExit: 4" in answers.done()[0].failures[0].text

    asyncio.run(run())


def test_whoever_asks_a_slot_and_goes_away_does_not_end_it() -> None:
    async def test(worker: SlotWorker, slot: Slot, hangs: Any, answers: Any) -> None:
        worker._start_batch(small(0, 1))
        asked = asyncio.ensure_future(worker.unload(3, 0))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked])
        hangs.may_end.set()
        async with asyncio.timeout(60):
            await answers.all_here.wait()
        await asyncio.wait_for(worker.unload(3, 0), 60)

    on_slot(test)


def test_a_job_that_raises_system_exit_is_an_error_that_a_loop_survives() -> None:
    def leave() -> None:
        raise SystemExit(5)

    slot = Slot(0, None)
    with pytest.raises(DeploymentError, match="SystemExit: 5"):
        slot.call(leave).result(60)
    assert slot.call(lambda: 7).result(60) == 7
    slot.stop()
