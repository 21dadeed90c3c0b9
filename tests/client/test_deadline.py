"""Deadlines of nested calls: the earliest holds, and what is left of it is the SLO of a request."""

from __future__ import annotations

import asyncio

import pytest

from symphony_dask import deadline
from symphony_dask.client.deadline import remaining_ns
from symphony_dask.client.model import Model
from symphony_dask.errors import (
    BadInput,
    DeadlineExceeded,
)
from tests.helpers.sent_requests import MS, Sent


def test_a_block_within_a_block_has_the_earlier_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    monkeypatch.setattr("symphony_dask.client.deadline.now_ns", lambda: now)
    assert remaining_ns() is None
    with deadline("80ms"):
        now += 30 * MS
        assert remaining_ns() == 50 * MS
        with deadline("20ms"):
            assert remaining_ns() == 20 * MS
        with deadline("1s"):
            assert remaining_ns() == 50 * MS
        now += 60 * MS
        assert remaining_ns() == -10 * MS
    assert remaining_ns() is None


def test_a_deadline_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="deadline 'soon' cannot be read"), deadline("soon"):
        pass


def test_requests_have_the_shorter_of_their_slo_and_what_is_left(model: Model, sent: Sent, clock: list[int]) -> None:
    model.submit(b"")  # its model's SLO, which the scheduler knows
    with deadline("80ms"):
        model.submit(b"")
        clock[0] = 50 * MS
        model.submit(b"")
        model.submit(b"", slo="10ms")
    assert sent.slos_ns == [0, 80 * MS, 30 * MS, 10 * MS]


def test_a_request_after_the_deadline_is_refused_without_being_sent(model: Model, sent: Sent, clock: list[int]) -> None:
    with deadline("80ms"):
        clock[0] = 90 * MS
        future = model.submit(b"")
    assert (future.done(), future.outcome, sent.slos_ns) == (True, "dropped", [])
    with pytest.raises(DeadlineExceeded, match="passed 10ms before this request to 'm': it was not sent"):
        future.result()


def test_tasks_of_asyncio_inherit_the_deadline(model: Model, sent: Sent, clock: list[int]) -> None:
    async def main() -> None:
        async def ask() -> None:
            model.submit(b"")

        with deadline("80ms"):
            task = asyncio.create_task(ask())
        await task

    asyncio.run(main())
    assert sent.slos_ns == [80 * MS]
