"""What a user of ``Serving`` sees, on a cluster of processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client import session
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import (
    BadInput,
    DeadlineExceeded,
    ModelError,
    Overloaded,
    Undeployed,
    UnknownModel,
)
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from tests.helpers.serving import LIMIT_S, PLACES, QUICK, Deploy, occupy, outcomes, queued

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
