"""What a user of ``Serving`` sees, on a cluster of processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client import model as model_module
from symphony_dask.client import session
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import (
    BadInput,
    ConnectionLost,
    DeadlineExceeded,
    DeploymentError,
    ModelError,
    NoGPUWorker,
    Overloaded,
    RequestError,
    Undeployed,
    UnknownModel,
)
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from tests.helpers.serving import EAGER, LIMIT_S, PLACES, QUICK, Deploy, occupy, outcomes, queued


def serves(serving: Serving) -> bool:
    return any(worker.get("serving") for worker in serving.status()["workers"].values())


@pytest.fixture
def held(serving: Serving, deploy: Deploy, gate: Gate) -> tuple[Model, list[Any]]:
    """A model of one request a batch that answers once the gate opens, and its requests in every place."""
    model = deploy(gate.model(), profile=QUICK, max_batch=1)
    return model, occupy(serving, model)


# What can be served


def test_an_emulated_model_answers_none(deploy: Deploy) -> None:
    assert deploy(Emulated(0.1, 1.0)).submit(b"anything").result(LIMIT_S) is None


def test_a_torch_module_is_profiled_on_its_example_and_answers(deploy: Deploy) -> None:
    module = models.linear()
    x = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    model = deploy(module, example=x, max_batch=8)
    assert model.profiles["cpu"].max_batch == 8
    import torch

    with torch.inference_mode():
        expected = module(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(model.submit(x).result(LIMIT_S), expected, rtol=1e-5)


def test_a_tensor_is_answered_with_a_tensor(deploy: Deploy) -> None:
    torch = pytest.importorskip("torch")
    model = deploy(models.linear(), profile=QUICK)
    answer = model.submit(torch.ones(4)).result(LIMIT_S)
    assert isinstance(answer, torch.Tensor)
    assert answer.shape == (3,)


def test_a_loader_is_called_on_the_workers(deploy: Deploy) -> None:
    assert deploy(models.load_double, example=np.array([3.0])).submit(np.array([3.0])).result(LIMIT_S).tolist() == [6.0]


def test_a_callable_on_a_batch_answers(deploy: Deploy) -> None:
    assert deploy(models.double, profile=QUICK)(np.array([3.0])).tolist() == [6.0]


def test_map_answers_in_the_order_of_its_inputs(deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    futures = model.map(np.array([float(i)]) for i in range(200))
    assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(200)]


def test_more_requests_than_fit_a_frame_are_all_sent(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FRAME_BYTES", 100)
    model = deploy(models.double, profile=QUICK)
    futures = model.map(np.full(7, float(i)) for i in range(200))
    assert [f.result(LIMIT_S)[0] for f in futures] == [2.0 * i for i in range(200)]


def test_samples_of_several_shapes_in_one_batch_each_get_their_own_answer(
    serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(models.total), profile=QUICK)
    first = occupy(serving, model)
    samples = [np.full(shape, float(i)) for i, shape in enumerate([(2,), (3,), (2, 2), (2,), (3,), (2, 2)] * 4)]
    futures = model.map(samples)
    wait_until(lambda: queued(serving, model) == len(samples), "queued requests")
    gate.open()
    assert [f.result(LIMIT_S) for f in futures] == [float(s.sum()) for s in samples]
    assert [f.result(LIMIT_S) for f in first] == [float(i) for i in range(PLACES)]
    assert serving.status()["models"][model.name]["batches"] == PLACES + 1


def test_an_asynchronous_client_awaits_everything(cluster: Cluster) -> None:
    async def main() -> None:
        async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            serving = await Serving(client)
            model = await serving.deploy("async", models.double, slo="60s", profile=QUICK)
            try:
                assert (await model.submit(np.array([1.0]))).tolist() == [2.0]
                answers = await asyncio.gather(*model.map(np.array([float(i)]) for i in range(50)))
                assert [a.tolist() for a in answers] == [[2.0 * i] for i in range(50)]
                assert (await serving.status())["models"]["async"]["outcomes"]["ok"] == 51
                with pytest.raises(BadInput):
                    await serving.deploy("async", models.double, slo="60s", profile=QUICK, version="1")
                assert await serving.find("async") is model
            finally:
                await serving.undeploy("async")
            await serving.close()

    asyncio.run(main())


# Futures


def test_futures_work_with_the_standard_library(deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    called = threading.Event()
    futures = model.map([np.array([float(i)]) for i in range(20)])
    futures[0].add_done_callback(lambda future: called.set())
    done, pending = concurrent.futures.wait(futures, timeout=LIMIT_S)
    assert (len(done), len(pending)) == (20, 0)
    assert len(list(concurrent.futures.as_completed(futures, timeout=LIMIT_S))) == 20
    assert called.wait(LIMIT_S)
    assert {f.outcome for f in futures} == {"ok"}


def test_result_gives_up_after_its_timeout_and_can_be_asked_again(held: tuple[Model, list[Any]], gate: Gate) -> None:
    _, futures = held
    with pytest.raises(TimeoutError):
        futures[0].result(timeout=0.01)
    gate.open()
    assert futures[0].result(LIMIT_S).tolist() == [0.0]


def test_many_threads_submit_at_once(deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)

    def ask(i: int) -> float:
        return float(model.submit(np.array([float(i)])).result(LIMIT_S)[0])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(400))) == [2.0 * i for i in range(400)]


def test_two_clients_at_once_each_get_their_own_answers(cluster: Cluster, deploy: Deploy, serving: Serving) -> None:
    model = deploy(models.double, profile=QUICK)
    with Serving(cluster.client()) as other:
        # Both clients number their requests from the same start.
        theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
        pairs = [(model.submit(np.array([float(i)])), theirs.submit(np.array([-float(i)]))) for i in range(300)]
        answers = [(a.result(LIMIT_S)[0], b.result(LIMIT_S)[0]) for a, b in pairs]
        assert answers == [(2.0 * i, -2.0 * i) for i in range(300)]


def test_a_queued_request_that_is_cancelled_does_not_run(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    waiting = model.map([np.array([7.0]), np.array([8.0])])
    wait_until(lambda: queued(serving, model) == 2, "two queued requests")
    assert waiting[0].cancel()
    wait_until(lambda: queued(serving, model) == 1, "one queued request")
    gate.open()
    assert waiting[1].result(LIMIT_S).tolist() == [16.0]
    assert concurrent.futures.wait([*futures, *waiting], LIMIT_S).not_done == set()
    assert outcomes(serving, model) == {"ok": PLACES + 1, "cancelled": 1}


def test_a_request_that_is_cancelled_in_flight_is_counted_as_cancelled(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    assert futures[0].cancel()
    serving.status()  # on the same event loop, so the cancellation has left
    marker = model.submit(np.array([1.0]))
    wait_until(lambda: queued(serving, model) == 1, "a request sent after the cancellation")
    gate.open()
    marker.result(LIMIT_S)
    wait_until(lambda: outcomes(serving, model) == {"ok": PLACES, "cancelled": 1}, "all outcomes")


# How requests end


def test_an_answer_after_the_deadline_comes_and_is_late(deploy: Deploy) -> None:
    model = deploy(models.slow, profile="0.5,0.5", slo="400ms")
    future = model.submit(np.array([1.0]))
    assert future.result(LIMIT_S).tolist() == [1.0]
    assert future.outcome == "late"


def test_a_request_that_cannot_meet_its_deadline_is_dropped(serving: Serving, deploy: Deploy) -> None:
    model = deploy(Emulated(0.0, 50.0))
    future = model.submit(b"", slo="20ms")
    with pytest.raises(DeadlineExceeded, match="within what this request had left, 20ms"):
        future.result(LIMIT_S)
    assert future.outcome == "dropped"


def test_one_models_wrong_profile_costs_another_no_request(serving: Serving, deploy: Deploy) -> None:
    tight = deploy(Emulated(4.0, 80.0), slo="200ms")

    def answered() -> int:
        return sum(tight.submit(b"").exception(LIMIT_S) is None for _ in range(10))

    assert answered() == 10
    wrong = deploy(models.sleepy, profile="0.04,8", slo="2s")  # takes four times as long
    for _ in range(5):
        for future in wrong.map([np.zeros(2)] * 60):
            future.exception(LIMIT_S)
    assert answered() == 10
    status = serving.status()
    assert status["models"][tight.name]["drift"] == {"cpu": 1.0}
    assert all(pace == 1.0 for worker in status["workers"].values() for pace in worker["pace"])
    serving.undeploy(wrong.name)
    assert answered() == 10


def test_under_impossible_load_some_are_answered_and_the_rest_dropped(serving: Serving, deploy: Deploy) -> None:
    model = deploy(Emulated(0.0, 100.0), slo="1s", max_batch=1)
    futures = model.map([b""] * 100)
    assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
    ended = [type(f.exception()) for f in futures]
    assert set(ended) == {type(None), DeadlineExceeded}
    assert sum(outcomes(serving, model).values()) == 100


def test_requests_beyond_the_queue_limit_are_rejected(serving: Serving, deploy: Deploy, gate: Gate) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=1)
    futures = model.map([np.array([1.0])] * 50)
    wait_until(lambda: sum(f.done() for f in futures) >= 50 - PLACES - 1, "the rejections")
    gate.open()
    assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
    rejected = [f for f in futures if f.exception() is not None]
    assert {type(f.exception()) for f in rejected} == {Overloaded}
    assert {f.outcome for f in rejected} == {"rejected"}
    assert "is full with" in str(rejected[0].exception())
    assert outcomes(serving, model) == {"ok": 50 - len(rejected), "rejected": len(rejected)}


def test_what_a_model_raises_comes_back_with_its_traceback(deploy: Deploy) -> None:
    model = deploy(models.divide, profile=QUICK, max_batch=1)
    bad, good = model.submit(0.0), model.submit(2.0)
    with pytest.raises(ModelError, match=r"(?s)models\.py.*in divide.*ZeroDivisionError"):
        bad.result(LIMIT_S)
    assert bad.outcome == "failed"
    assert good.result(LIMIT_S) == 0.5


def test_a_wrong_number_of_answers_is_named(deploy: Deploy) -> None:
    with pytest.raises(ModelError, match="1"):
        deploy(models.one_answer_short, profile=QUICK).submit(np.array([1.0])).result(LIMIT_S)


def test_undeploying_ends_queued_requests_and_later_ones(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    waiting = model.submit(np.array([9.0]))
    wait_until(lambda: queued(serving, model) == 1, "a queued request")
    serving.undeploy(model.name)
    with pytest.raises(Undeployed, match="was undeployed"):
        waiting.result(LIMIT_S)
    assert waiting.outcome == "cancelled"
    with pytest.raises(UnknownModel):
        model.submit(np.array([1.0])).result(LIMIT_S)
    gate.open()
    assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(PLACES)]


# What is refused


def test_a_slo_that_cannot_be_read_is_refused(serving: Serving, deploy: Deploy) -> None:
    with pytest.raises(BadInput, match="slo '25 parsecs' cannot be read"):
        serving.deploy("refused", Emulated(1, 1), slo="25 parsecs")
    with pytest.raises(BadInput, match="parsecs"):
        deploy(Emulated(0.1, 1)).submit(b"", slo="25 parsecs")


def test_a_slo_that_one_request_alone_cannot_meet_is_refused(serving: Serving) -> None:
    with pytest.raises(BadInput, match=r"SLO 5ms of model 'refused' cannot be met: one request alone takes 12ms"):
        serving.deploy("refused", Emulated(2, 10), slo="5ms")
    assert not serving.status()["loading"]


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (Emulated(1, 1), {"max_batch": 0}, "max_batch=0"),
        (Emulated(1, 1), {"queue_limit": 1.5}, "queue_limit=1.5"),
        (Emulated(1, 1), {"timeout": "soon"}, "timeout 'soon'"),
        (models.double, {}, "neither profile nor example"),
        (models.double, {"profile": "fast"}, "profile 'fast' cannot be read"),
        (models.double, {"example": object()}, "object"),
        (17, {"profile": QUICK}, "cannot serve a int"),
    ],
)
def test_a_deployment_that_makes_no_sense_is_refused(
    serving: Serving, model: Any, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(BadInput, match=match):
        serving.deploy("refused", model, slo="1s", **options)


def test_a_sample_of_another_shape_is_refused_when_it_is_submitted(deploy: Deploy) -> None:
    model = deploy(models.double, example=np.zeros((3, 4), np.float32), profile=QUICK)
    with pytest.raises(BadInput, match=r"takes float32 \(3, 4\); got float64 \(2,\)"):
        model.submit(np.zeros(2))


def test_a_sample_too_large_to_send_is_refused(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "MAX_SAMPLE_BYTES", 1000)
    with pytest.raises(BadInput, match=r"a sample of 1001 bytes.*the most is 1000"):
        deploy(Emulated(0.1, 1)).submit(b"x" * 1000)


def test_a_model_that_is_not_deployed_is_unknown(serving: Serving) -> None:
    with pytest.raises(UnknownModel, match="'nobody'"):
        serving.model("nobody")
    with pytest.raises(UnknownModel, match="'nobody'"):
        serving.undeploy("nobody")


def test_a_loader_that_raises_fails_the_deployment_with_its_traceback(serving: Serving) -> None:
    with pytest.raises(DeploymentError, match=r"(?s)in load_nothing.*FileNotFoundError: no weights here"):
        serving.deploy("refused", models.load_nothing, slo="1s", profile=QUICK)


def test_a_module_that_does_not_take_its_example_fails_the_deployment(serving: Serving) -> None:
    with pytest.raises(DeploymentError, match=r"(?s)failed on its example, float32 \(5,\).*mat1 and mat2"):
        serving.deploy("refused", models.linear(), slo="1s", example=np.zeros(5, np.float32))


def test_a_deployment_that_fails_does_not_disturb_what_is_served(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    with pytest.raises(DeploymentError):  # while the slots' threads wait for the gate
        serving.deploy("refused", models.load_nothing, slo="1s", profile=QUICK)
    gate.open()
    assert model.submit(np.array([1.0])).result(LIMIT_S).tolist() == [2.0]
    assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(PLACES)]
    assert outcomes(serving, model) == {"ok": PLACES + 1}
    assert [w["serving"] for w in serving.status()["workers"].values()] == [1, 1]


def test_deployments_at_once_do_not_fail_each_other(serving: Serving, deploy: Deploy) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        bad = pool.submit(serving.deploy, "refused", models.load_nothing, slo="1s", profile=QUICK)
        good = pool.submit(deploy, models.double, profile=QUICK)
        assert good.result(LIMIT_S)(np.array([1.0])).tolist() == [2.0]
        with pytest.raises(DeploymentError):
            bad.result(LIMIT_S)


# Observation


def test_status_shows_models_workers_and_counts(serving: Serving, deploy: Deploy) -> None:
    model = deploy(Emulated(0.1, 0.5), max_batch=16)
    for _ in range(3):
        model(b"")
    status = serving.status()
    assert status["policy"] == "eager"
    assert status["recording"] is None
    assert not status["loading"]
    shown = status["models"][model.name]
    assert (shown["slo_ns"], shown["queued"], shown["batches"], shown["mean_batch"]) == (60 * 10**9, 0, 3, 1.0)
    assert shown["profiles"]["cpu"]["alpha_ms"] == 0.1
    assert len(status["workers"]) == 2
    for address, worker in status["workers"].items():
        assert address.startswith("tcp://127.0.0.1:")
        assert {k: worker[k] for k in ("gpu_class", "slots", "serving", "draining", "in_flight", "error")} == {
            "gpu_class": "cpu", "slots": 1, "serving": 1, "draining": False, "in_flight": 0, "error": None,
        }  # fmt: skip


def test_the_policy_can_be_changed(serving: Serving) -> None:
    try:
        assert serving.set_policy("deferred") == "deferred"
        assert serving.status()["policy"] == "deferred"
        with pytest.raises(BadInput, match="'lucky' is unknown: choose one of"):
            serving.set_policy("lucky")
    finally:
        serving.set_policy("eager")


def test_the_counts_of_a_recording_add_up(serving: Serving, deploy: Deploy, gate: Gate, tmp_path: Path) -> None:
    folder = serving.record(str(tmp_path / "run"), purpose="test")
    with pytest.raises(BadInput, match="stop it first"):
        serving.record(str(tmp_path / "other"))
    plain = deploy(models.divide, profile=QUICK, max_batch=4)
    gated = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=5)
    futures = occupy(serving, gated) + gated.map([np.array([1.0])] * 26)
    wait_until(lambda: queued(serving, gated) == 5, "a full queue")
    next(f for f in reversed(futures) if not f.done()).cancel()
    wait_until(lambda: queued(serving, gated) == 4, "the cancelled one to leave the queue")
    gate.open()
    futures += [*plain.map([0.0, 1.0, 2.0]), plain.submit(1.0, slo="1us")]
    concurrent.futures.wait(futures, LIMIT_S)
    wait_until(
        lambda: sum(outcomes(serving, gated).values()) + sum(outcomes(serving, plain).values()) == 34, "all outcomes"
    )
    assert serving.stop_recording() == folder
    assert serving.stop_recording() is None
    summary = open_run(folder).summary()
    assert summary.requests == 34
    assert summary.ok == sum(f.outcome == "ok" for f in futures)
    assert summary.late == 0
    assert (summary.dropped, summary.cancelled) == (1, 1)
    assert summary.rejected == sum(f.outcome == "rejected" for f in futures)
    assert summary.failed == sum(f.outcome == "failed" for f in futures)
    served = (summary.ok, summary.late, summary.dropped, summary.rejected, summary.failed, summary.cancelled)
    assert sum(served) == 34


# Connections


def test_closing_the_lane_ends_pending_requests_and_asking_opens_it_again(
    cluster: Cluster, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, _ = held
    other = Serving(cluster.client())
    theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
    future = theirs.submit(np.array([1.0]))
    other.close()
    with pytest.raises(ConnectionLost, match=r"closed by Serving.close\(\)"):
        future.result(LIMIT_S)
    with pytest.raises(ConnectionLost, match=r"make a new Serving\(client\)"):
        theirs.submit(np.array([1.0]))
    other.status()
    again = theirs.submit(np.array([5.0]))
    gate.open()
    assert again.result(LIMIT_S).tolist() == [10.0]
    other.close()


def test_closing_the_dask_client_ends_pending_requests(cluster: Cluster, held: tuple[Model, list[Any]]) -> None:
    model, _ = held

    async def main() -> list[Any]:
        client = await Client(cluster.address, asynchronous=True, set_as_default=False)
        other = await Serving(client)
        theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
        futures.append(theirs.submit(np.array([1.0])))
        await other.status()
        await client.close()
        return [theirs]

    # The event loop of a synchronous client ends with the last client of the process; this one ends by itself.
    futures: list[Any] = []
    (theirs,) = asyncio.run(main())
    with pytest.raises(ConnectionLost, match="Dask client was closed"):
        futures[0].result(LIMIT_S)
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            theirs.submit(np.array([1.0])).result(LIMIT_S)


def test_a_worker_whose_lane_breaks_comes_back_and_answers(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    serving.client.run(models.break_lane)
    wait_until(lambda: queued(serving, model) == PLACES, "every request back in the queue")
    gate.open()
    assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(PLACES)]
    assert outcomes(serving, model) == {"ok": PLACES}


def test_a_killed_scheduler_ends_pending_requests_as_connection_lost(gate: Gate) -> None:
    with Cluster(1, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        model = serving.deploy("m", gate.model(), slo="60s", profile=QUICK, timeout="60s")
        futures = model.map([np.array([1.0])] * 10)
        cluster.scheduler.kill()
        assert concurrent.futures.wait(futures, LIMIT_S).not_done == set()
        assert {type(f.exception()) for f in futures} == {ConnectionLost}
        with pytest.raises(ConnectionLost):
            model.submit(np.array([1.0])).result(LIMIT_S)
        serving.close()


def test_serving_installs_itself_once_and_a_deployment_waits_for_a_worker() -> None:
    with Cluster(1, gpu=False, preload=False, settings=EAGER) as cluster:
        clients = [cluster.client(), cluster.client()]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first, second = pool.map(Serving, clients)
            with pytest.raises(NoGPUWorker, match=r'no worker with a GPU resource.*--resources "GPU=1"'):
                first.deploy("m", Emulated(0.1, 1), slo="60s", timeout="50ms")
            waiting = pool.submit(first.deploy, "m", Emulated(0.1, 1), slo="60s", timeout="60s")
            wait_until(lambda: "m" in second.status()["loading"], "the deployment, seen by the other client")
            cluster.add_worker(gpu=True)
            model = waiting.result(60)
        assert model.submit(b"").result(LIMIT_S) is None


def test_requests_and_deployments_without_a_worker_end_and_the_next_worker_serves() -> None:
    with Cluster(1, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        model = serving.deploy("m", Emulated(0.1, 1), slo="60s")
        cluster.workers[-1].kill()
        wait_until(lambda: not serving.status()["workers"], "the loss of the worker")
        with pytest.raises(NoGPUWorker, match="no worker serves model 'm'"):
            model.submit(b"").result(LIMIT_S)
        with pytest.raises(NoGPUWorker):
            serving.deploy("n", Emulated(0.1, 1), slo="60s", timeout="50ms")
        cluster.add_worker()
        wait_until(lambda: serves(serving), "another worker", 60)
        assert model.submit(b"").result(LIMIT_S) is None


def test_a_worker_that_dies_while_it_loads_fails_the_deployment() -> None:
    with Cluster(1, settings=EAGER) as cluster:
        serving = Serving(cluster.client())
        model = serving.deploy("m", Emulated(0.1, 1), slo="60s")
        with pytest.raises(DeploymentError, match="came up on no worker"):
            serving.deploy("n", models.die_on_load, slo="60s", profile=QUICK)
        cluster.add_worker()
        wait_until(lambda: serves(serving), "another worker", 60)
        assert model.submit(b"").result(LIMIT_S) is None
        assert list(serving.status()["models"]) == ["m"]


def test_uvloop_serves_small_and_large_payloads() -> None:
    pytest.importorskip("uvloop")
    with Cluster(1, settings={**EAGER, "DASK_DISTRIBUTED__ADMIN__EVENT_LOOP": "uvloop"}) as cluster:
        loop = cluster.client().run_on_scheduler(lambda: type(asyncio.get_running_loop()).__module__)
        assert loop.startswith("uvloop")
        with Serving(cluster.client()) as serving:
            model = serving.deploy("m", partial(models.double), slo="60s", profile=QUICK)
            for size in (1, 100_000):
                futures = model.map([np.full(size, i, np.float64) for i in range(50)])
                for i, future in enumerate(futures):
                    assert (future.result(LIMIT_S) == 2 * i).all()


def test_a_local_cluster_of_processes_serves() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, resources={"GPU": 1}, dashboard_address=None
        ) as local,
        Client(local, set_as_default=False) as client,
        Serving(client) as serving,
    ):
        model = serving.deploy("m", partial(models.double), slo="60s", profile=QUICK)
        serving.set_policy("eager")
        assert model(np.array([2.0])).tolist() == [4.0]
        with pytest.raises(RequestError):
            model.submit("text is not doubled", slo="1us").result(LIMIT_S)


# Readiness


def test_a_cluster_that_serves_is_ready(serving: Serving, deploy: Deploy) -> None:
    assert serving.wait_ready() == 2
    assert serving.wait_ready(deploy(models.double, profile=QUICK).name, gpus=2) == 2


def test_what_a_cluster_lacks_is_named(serving: Serving) -> None:
    with pytest.raises(NoGPUWorker, match=r"2 of 3 GPU slots serve after 0\.01 s"):
        serving.wait_ready(gpus=3, timeout="10ms")
    with pytest.raises(UnknownModel, match=r"model 'nothing' is not deployed after 0\.01 s"):
        serving.wait_ready("nothing", timeout="10ms")
