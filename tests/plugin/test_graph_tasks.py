"""Models as functions of Dask tasks, on a cluster of processes: held, batched, and in all else Dask's tasks."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import polars as pl
import pytest
from dask.base import tokenize
from distributed import Client

import symphony_dask
from symphony_dask.backends import Emulated
from symphony_dask.client.serving import ModelRef, Serving
from symphony_dask.errors import (
    BadInput,
    DeadlineExceeded,
    ModelError,
    NotServing,
    Overloaded,
    Undeployed,
    UnknownModel,
)
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import wait_until
from tests.helpers.graph_tasks import expect, sample, threads_of
from tests.helpers.models import Gate
from tests.helpers.serving import LIMIT_S, PLACES, QUICK, Deploy, in_flight, occupy, outcomes, queued


@pytest.fixture
def client(serving: Serving) -> Client:
    return serving.client


def first(array: Any) -> float:
    return float(array[0])


def add_one(x: float) -> float:
    return x + 1


def wait_for(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.002)
    return path


# What a task of a model is


def test_submit_answers_and_its_result_is_as_any_task_result(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    future = client.submit(model, sample(3))
    assert future.result(LIMIT_S).tolist() == [6.0]
    assert client.who_has([future])[future.key]
    assert client.submit(first, future).result(LIMIT_S) == 6.0
    expect(serving, model, {"ok": 1})


def test_a_chain_of_delayed_functions_and_a_model(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    chains = [dask.delayed(first)(dask.delayed(model)(dask.delayed(sample)(i))) for i in range(20)]
    total = dask.delayed(sum)(chains)
    assert client.compute(total).result(LIMIT_S) == 2 * sum(range(20))
    expect(serving, model, {"ok": 20})


def test_a_chain_of_submitted_futures(client: Client, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    answers = [client.submit(first, client.submit(model, client.submit(sample, i))) for i in range(20)]
    assert client.gather(answers) == [2.0 * i for i in range(20)]


def test_two_models_follow_each_other(client: Client, deploy: Deploy) -> None:
    double, total = deploy(models.double, profile=QUICK), deploy(models.total, profile=QUICK)
    future = client.submit(total, client.submit(double, np.arange(4.0)))
    assert float(future.result(LIMIT_S)) == 12.0


def test_a_map_is_answered_in_order_and_in_batches(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    answers = client.gather(client.map(model, [sample(i) for i in range(200)]))
    assert [a.tolist() for a in answers] == [[2.0 * i] for i in range(200)]
    status = serving.status()["models"][model.name]
    assert status["mean_batch"] > 4
    expect(serving, model, {"ok": 200})
    wait_until(lambda: threads_of(client) == {(1, 0)}, "workers with their own threads only")


def test_tasks_and_lane_requests_share_a_batch(client: Client, serving: Serving, deploy: Deploy, gate: Gate) -> None:
    model = deploy(gate.model(models.total), profile=QUICK)
    running = occupy(serving, model)
    asked = model.map([np.full(2, float(i)) for i in range(5)])
    tasks = client.map(model, [np.full(3, float(i)) for i in range(5)])
    wait_until(lambda: queued(serving, model) == 10, "ten queued requests")
    gate.open()
    assert [f.result(LIMIT_S) for f in asked] == [2.0 * i for i in range(5)]
    assert [float(f.result(LIMIT_S)) for f in tasks] == [3.0 * i for i in range(5)]
    assert [f.result(LIMIT_S) for f in running] == [float(i) for i in range(PLACES)]
    assert serving.status()["models"][model.name]["batches"] == PLACES + 1
    expect(serving, model, {"ok": PLACES + 10})


def test_a_model_that_raises_for_one_sample_fails_the_tasks_of_its_call_alone(client: Client, deploy: Deploy) -> None:
    model = deploy(models.divide, profile=QUICK, max_batch=1)
    bad, good = client.submit(model, 0.0), client.submit(model, 2.0)
    assert good.result(LIMIT_S) == 0.5
    with pytest.raises(ModelError, match=r"(?s)models\.py.*in divide.*ZeroDivisionError"):
        bad.result(LIMIT_S)
    after = client.submit(add_one, bad)
    with pytest.raises(ModelError):
        after.result(LIMIT_S)


def test_what_cannot_be_sent_fails_its_task_and_no_other(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, example=sample(0), max_batch=8)
    futures = client.map(model, [sample(1), np.zeros(3), object(), sample(2)], pure=False)
    assert futures[0].result(LIMIT_S).tolist() == [2.0]
    assert futures[3].result(LIMIT_S).tolist() == [4.0]
    with pytest.raises(BadInput, match=r"takes float64 \(1,\); got float64 \(3,\)"):
        futures[1].result(LIMIT_S)
    with pytest.raises(BadInput, match="cannot send a object"):
        futures[2].result(LIMIT_S)
    wait_until(lambda: sum(outcomes(serving, model).values()) == 4, "four outcomes")


# Names, tokens, annotations


def test_keys_are_pure_and_tell_deployments_apart(client: Client, serving: Serving, deploy: Deploy) -> None:
    model, other = deploy(models.double, profile=QUICK), deploy(models.double, profile=QUICK)
    one, same = client.submit(model, sample(1)), client.submit(model, sample(1))
    assert one.key == same.key
    assert one.key.startswith(model.name)
    assert client.submit(other, sample(1)).key != one.key
    assert tokenize(model) == tokenize(pickle.loads(pickle.dumps(model)))
    assert one.result(LIMIT_S).tolist() == [2.0]


def test_a_client_without_serving_names_the_model(client: Client, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    assert client.submit(ModelRef(model.name), sample(2)).result(LIMIT_S).tolist() == [4.0]
    with dask.annotate(symphony={"model": model.name, "slo": "50s", "priority": 1}):
        assert client.submit(symphony_dask.infer, sample(3)).result(LIMIT_S).tolist() == [6.0]


def test_an_annotation_leaves_plain_functions_alone(client: Client, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    with dask.annotate(symphony={"slo": "50s"}):
        answer = dask.delayed(first)(dask.delayed(model)(dask.delayed(sample)(4)))
        assert client.compute(answer).result(LIMIT_S) == 8.0


@pytest.mark.parametrize(
    ("annotation", "match"),
    [
        ({"slo": "soon"}, "slo 'soon' cannot be read"),
        ({"priority": 9}, "priority=9"),
        ({"prio": 1}, "annotation symphony=.* has prio"),
        ("fast", "annotation symphony='fast'"),
    ],
)
def test_an_annotation_that_makes_no_sense_fails_the_task(
    client: Client, deploy: Deploy, annotation: Any, match: str
) -> None:
    model = deploy(models.double, profile=QUICK)
    with dask.annotate(symphony=annotation):
        future = client.submit(model, sample(1), pure=False)
    with pytest.raises(BadInput, match=match):
        future.result(LIMIT_S)


def test_a_model_called_inside_another_task_says_what_to_do(client: Client, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK)
    future = client.submit(lambda call: call(sample(1)), model)
    with pytest.raises(NotServing, match="make it a task of its own"):
        future.result(LIMIT_S)


# How requests of tasks end


def test_a_dropped_request_is_an_error_that_names_the_slo(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(Emulated(0.0, 50.0))
    with dask.annotate(symphony={"slo": "20ms"}):
        future = client.submit(model, b"")
    error = future.exception(LIMIT_S)
    assert isinstance(error, DeadlineExceeded)
    assert "within what this request had left" in str(error)
    assert "20ms" in str(error)
    assert isinstance(client.submit(model, b"1", slo="20ms").exception(LIMIT_S), DeadlineExceeded)
    expect(serving, model, {"dropped": 2})


def test_the_deadline_counts_from_when_the_task_could_run(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, slo="400ms")
    slow = client.submit(models.slow, sample(5), pure=False)
    assert client.submit(model, slow).result(LIMIT_S).tolist() == [10.0]
    expect(serving, model, {"ok": 1})


def test_a_model_that_is_not_deployed_is_unknown(client: Client, deploy: Deploy) -> None:
    deploy(models.double, profile=QUICK)
    with pytest.raises(UnknownModel, match=r"model 'nobody' is not deployed; deployed are \['test_"):
        client.submit(ModelRef("nobody"), sample(1)).result(LIMIT_S)


def test_undeploying_fails_queued_tasks(client: Client, serving: Serving, deploy: Deploy, gate: Gate) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1)
    running = occupy(serving, model)
    future = client.submit(model, sample(9))
    wait_until(lambda: queued(serving, model) == 1, "a queued task")
    serving.undeploy(model.name)
    with pytest.raises(Undeployed):
        future.result(LIMIT_S)
    gate.open()
    assert [f.result(LIMIT_S).tolist() for f in running] == [[2.0 * i] for i in range(PLACES)]


def test_tasks_beyond_the_queue_limit_are_overloaded(
    client: Client, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=1)
    occupy(serving, model)
    futures = client.map(model, [sample(i) for i in range(10)])
    wait_until(lambda: sum(f.status == "error" for f in futures) == 9, "nine rejections")
    gate.open()
    wait_until(lambda: all(f.done() for f in futures), "the end of all tasks")
    assert {type(f.exception()) for f in futures if f.status == "error"} == {Overloaded}
    expect(serving, model, {"ok": PLACES + 1, "rejected": 9})


def test_retries_become_new_requests(client: Client, serving: Serving, deploy: Deploy, tmp_path: Path) -> None:
    model = deploy(models.FailsAtFirst(tmp_path), profile=QUICK)
    assert client.submit(model, sample(4), retries=2).result(LIMIT_S).tolist() == [8.0]
    expect(serving, model, {"ok": 1, "failed": 1})


def test_retries_of_a_dropped_task_are_counted(client: Client, serving: Serving, deploy: Deploy) -> None:
    model = deploy(Emulated(0.0, 50.0))
    future = client.submit(model, b"", slo="20ms", retries=2)
    assert isinstance(future.exception(LIMIT_S), DeadlineExceeded)
    expect(serving, model, {"dropped": 3})


def test_a_failed_task_can_be_retried_by_hand(client: Client, serving: Serving, deploy: Deploy, tmp_path: Path) -> None:
    model = deploy(models.FailsAtFirst(tmp_path), profile=QUICK)
    future = client.submit(model, sample(4))
    assert isinstance(future.exception(LIMIT_S), ModelError)
    future.retry()
    wait_until(lambda: future.status == "finished", "the retried task")
    assert future.result(LIMIT_S).tolist() == [8.0]


def test_a_cancelled_task_is_a_cancelled_request(client: Client, serving: Serving, deploy: Deploy, gate: Gate) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1)
    running = occupy(serving, model)
    cancelled, kept = client.map(model, [sample(7), sample(8)])
    wait_until(lambda: queued(serving, model) == 2, "two queued tasks")
    cancelled.cancel()
    wait_until(lambda: queued(serving, model) == 1, "one queued task")
    gate.open()
    assert kept.result(LIMIT_S).tolist() == [16.0]
    assert [f.result(LIMIT_S).tolist() for f in running] == [[2.0 * i] for i in range(PLACES)]
    expect(serving, model, {"ok": PLACES + 1, "cancelled": 1})


def test_a_task_that_is_cancelled_in_flight_is_counted_and_the_next_runs(
    client: Client, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1)
    future = client.submit(model, sample(7))
    wait_until(lambda: in_flight(serving) == 1, "a task in flight")
    key = future.key
    future.cancel()
    wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: key in dask_scheduler.tasks), "no such task")
    again = client.submit(model, sample(8))
    gate.open()
    assert again.result(LIMIT_S).tolist() == [16.0]
    expect(serving, model, {"ok": 1, "cancelled": 1})
    wait_until(lambda: threads_of(client) == {(1, 0)}, "workers with their own threads only")


def test_a_released_task_is_a_cancelled_request(client: Client, serving: Serving, deploy: Deploy, gate: Gate) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1)
    occupy(serving, model)
    future = client.submit(model, sample(7))
    wait_until(lambda: queued(serving, model) == 1, "a queued task")
    del future
    wait_until(lambda: queued(serving, model) == 0, "an empty queue")
    expect(serving, model, {"cancelled": 1})


# Beside other tasks


def test_plain_tasks_run_beside_held_ones(client: Client, serving: Serving, deploy: Deploy, gate: Gate) -> None:
    model = deploy(gate.model(), profile=QUICK)
    held = client.map(model, [sample(i) for i in range(50)])
    wait_until(lambda: in_flight(serving) > 0, "held tasks at workers")
    assert client.gather(client.map(add_one, range(50), pure=False)) == list(range(1, 51))
    gate.open()
    assert [a[0] for a in client.gather(held)] == [2.0 * i for i in range(50)]


def test_held_tasks_run_beside_plain_ones_that_take_all_threads(client: Client, deploy: Deploy, tmp_path: Path) -> None:
    model = deploy(models.double, profile=QUICK)
    path = str(tmp_path / "done")
    blocking = client.map(wait_for, [path] * 8, pure=False)
    wait_until(lambda: all(client.processing().values()), "a plain task at each worker")
    assert [a[0] for a in client.gather(client.map(model, [sample(i) for i in range(20)]))] == [
        2.0 * i for i in range(20)
    ]
    assert not any(f.done() for f in blocking)
    Path(path).touch()
    assert client.gather(blocking) == [path] * 8


def test_nothing_is_kept_of_tasks_that_are_gone(client: Client, deploy: Deploy, tmp_path: Path) -> None:
    def held(name: str, dask_scheduler: Any) -> tuple[int, int]:
        tasks = dask_scheduler.plugins["symphony"]._graph_tasks
        mine = [str(key) for key in tasks._tasks if str(key).startswith(name)]  # futures of other tests may live on
        return len(mine), len(tasks._open)

    def at_worker(dask_worker: Any) -> tuple[int, ...]:
        plugin = dask_worker.plugins["symphony"]
        meeting = plugin.rendezvous
        return len(plugin._graph_tasks), len(meeting._lent), len(meeting._alone), len(meeting._expected)

    model = deploy(models.FailsAtFirst(tmp_path), profile=QUICK, max_batch=8)
    futures = client.map(model, [sample(i) for i in range(50)], pure=False)
    futures += client.map(model, [sample(i) for i in range(50)], pure=False, retries=1)
    client.cancel(futures[25:50])
    wait_until(lambda: all(f.done() for f in futures), "the end of all tasks")
    futures.clear()
    wait_until(lambda: client.run_on_scheduler(held, model.name) == (0, 0), "no held task at the scheduler")
    wait_until(lambda: set(client.run(at_worker).values()) == {(0, 0, 0, 0)}, "no held task at the workers")


def test_recorded_requests_add_up(client: Client, serving: Serving, deploy: Deploy, tmp_path: Path) -> None:
    model = deploy(models.double, profile=QUICK)
    folder = serving.record(str(tmp_path / "run"))
    client.gather(client.map(model, [sample(i) for i in range(50)]))
    dropped = client.map(model, [sample(-i) for i in range(1, 6)], slo="1us")
    wait_until(lambda: all(f.done() for f in dropped), "the end of all tasks")
    lane = model.map([sample(i) for i in range(10)])
    assert [f.result(LIMIT_S)[0] for f in lane] == [2.0 * i for i in range(10)]
    wait_until(lambda: sum(outcomes(serving, model).values()) == 65, "all outcomes")
    serving.stop_recording()
    rows = open_run(folder).requests.collect()
    counts = dict(rows["outcome"].cast(pl.String).value_counts().iter_rows())
    assert counts == {"ok": 60, "dropped": 5}
    assert rows["client"].n_unique() == 2
