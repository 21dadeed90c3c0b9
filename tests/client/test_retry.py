"""What is refused is tried again, as often as was asked for and no longer than its deadline."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.retry import RetriedFuture
from symphony_dask.client.serving import Serving
from symphony_dask.errors import (
    BadInput,
    ConnectionLost,
    DeadlineExceeded,
    ModelError,
    NoGPUWorker,
    Overloaded,
)
from tests.helpers.cluster import Cluster, wait_until
from tests.helpers.models import Gate
from tests.helpers.sent_requests import MS, Sent, refuse
from tests.helpers.serving import LIMIT_S, QUICK, Deploy, occupy, outcomes, queued


def test_a_refused_request_is_sent_again_with_what_is_left(model: Model, sent: Sent, clock: list[int]) -> None:
    future = model.submit(b"", retries=2)
    clock[0] = 10 * MS
    refuse(sent.futures[0])
    clock[0] = 25 * MS
    refuse(sent.futures[1], NoGPUWorker("none"))
    assert (sent.slos_ns, sent.waits_s) == ([100 * MS, 90 * MS, 75 * MS], [0.00625, 0.0125])
    sent.futures[2]._finish("ok", 42, None)
    assert (future.result(), future.outcome, future.request) == (42, "ok", 2)


def test_the_last_refusal_is_the_answer_when_no_retry_is_left(model: Model, sent: Sent, clock: list[int]) -> None:
    future = model.submit(b"", retries=1)
    refuse(sent.futures[0])
    refuse(sent.futures[1], Overloaded("still full"))
    with pytest.raises(Overloaded, match="still full"):
        future.result(0)
    assert (len(sent.futures), future.outcome) == (2, "rejected")


def test_nothing_is_sent_again_when_the_wait_would_pass_the_deadline(
    model: Model, sent: Sent, clock: list[int]
) -> None:
    future = model.submit(b"", slo="16ms", retries=5)  # waits 1 ms
    clock[0] = 15 * MS
    refuse(sent.futures[0])
    assert isinstance(future.exception(0), Overloaded)
    assert len(sent.futures) == 1


@pytest.mark.parametrize("error", [ModelError("raised"), DeadlineExceeded("late"), ConnectionLost("gone")])
def test_what_another_try_cannot_mend_is_not_tried_again(model: Model, sent: Sent, error: Exception) -> None:
    future = model.submit(b"", retries=5)
    refuse(sent.futures[0], error)
    assert (future.exception(0), len(sent.futures)) == (error, 1)


def test_cancelling_a_retried_request_cancels_its_present_try(model: Model, sent: Sent, clock: list[int]) -> None:
    future = model.submit(b"", retries=5)
    refuse(sent.futures[0])
    assert future.cancel()
    assert (sent.cancelled, future.outcome) == ([1], "cancelled")
    assert isinstance(future, RetriedFuture)


def test_a_number_of_retries_that_is_none_is_refused(model: Model) -> None:
    with pytest.raises(BadInput, match="retries=-1: give a whole number, at least 0"):
        model.submit(b"", retries=-1)


def test_requests_that_find_the_queue_full_are_answered_once_there_is_room(
    serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=1)
    first = [*occupy(serving, model), model.submit(np.array([4.0]))]
    wait_until(lambda: queued(serving, model) == 1, "a full queue")
    patient, hasty = model.submit(np.array([7.0]), retries=100), model.submit(np.array([8.0]))
    assert isinstance(hasty.exception(LIMIT_S), Overloaded)
    wait_until(lambda: outcomes(serving, model).get("rejected", 0) >= 3, "refusals of the patient one")
    assert not patient.done()
    gate.open()
    assert patient.result(LIMIT_S).tolist() == [14.0]
    assert concurrent.futures.wait(first, LIMIT_S).not_done == set()


def test_a_request_that_waits_for_another_try_fails_with_the_connection(
    cluster: Cluster, serving: Serving, deploy: Deploy, gate: Gate
) -> None:
    model = deploy(gate.model(), profile=QUICK, max_batch=1, queue_limit=1)
    occupy(serving, model)
    model.submit(np.array([4.0]))
    wait_until(lambda: queued(serving, model) == 1, "a full queue")
    other = Serving(cluster.client())
    theirs = Model(model.name, model._id, model.slo_ns, {}, None, other._lane)
    future = theirs.submit(np.array([7.0]), retries=10**6)
    wait_until(lambda: outcomes(serving, model).get("rejected", 0) >= 1, "a refusal")
    other.close()
    with pytest.raises(ConnectionLost):
        future.result(LIMIT_S)
