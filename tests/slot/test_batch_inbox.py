"""A batch at a worker starts when all its payloads have come, or will not come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from symphony_dask.slot.batch_inbox import Batch, BatchInbox
from symphony_dask.wire import batch_codec
from symphony_dask.wire.messages import Data, Execute
from symphony_dask.wire.records import EXECUTE_ROW, make_column, make_records

HOUR_NS = 3_600 * 10**9

#: (client, request id, payload, held)
Request = tuple[int, int, bytes, bool]
TWO_CLIENTS: list[Request] = [(1, 10, b"aa", True), (2, 10, b"b", True), (1, 11, b"cccc", False), (1, 12, b"dd", True)]


def execute(inbox: BatchInbox, number: int, requests: list[Request], wait_ns: int = HOUR_NS) -> None:
    clients, ids, payloads, held = zip(*requests, strict=True)
    rows = make_records(EXECUTE_ROW, len(ids), id=ids, bytes=[len(p) for p in payloads], client=clients, held=held)
    inline = b"".join(p for p, h in zip(payloads, held, strict=True) if not h)
    inbox.execute(Execute(number, 0, 5, rows, wait_ns if any(held) else 0), memoryview(inline))


def data(inbox: BatchInbox, number: int, client: int, payloads: dict[int, bytes | None]) -> None:
    sizes = [-1 if p is None else len(p) for p in payloads.values()]
    blob = b"".join(p for p in payloads.values() if p is not None)
    inbox.data(Data(number, client, make_column(list(payloads)), make_column(sizes)), memoryview(blob))


def started(main: Callable[[BatchInbox], Any]) -> list[tuple[int, bytes, set[int]]]:
    """Number, payloads and lost indices of the batches that started."""

    async def wrapped() -> list[Batch]:
        batches: list[Batch] = []
        inbox = BatchInbox(batches.append)
        await main(inbox)
        assert not inbox._waiting
        assert not inbox._early
        return batches

    return [(b.number, b"".join(batch_codec.split(b.blob, b.present_sizes())), b.lost) for b in asyncio.run(wrapped())]


def test_a_batch_without_held_payloads_starts_at_once() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 1, [(1, 1, b"a", False), (1, 2, b"b", False)])

    assert started(main) == [(1, b"ab", set())]


def test_payloads_come_from_several_clients_in_pieces_before_and_after_execute() -> None:
    async def main(inbox: BatchInbox) -> None:
        data(inbox, 3, 1, {12: b"dd"})
        execute(inbox, 3, TWO_CLIENTS)
        data(inbox, 3, 2, {10: b"b"})
        data(inbox, 3, 1, {10: b"aa"})

    assert started(main) == [(3, b"aabccccdd", set())]


def test_a_batch_that_comes_in_one_frame_is_not_copied() -> None:
    batches: list[Batch] = []

    async def main() -> None:
        inbox = BatchInbox(batches.append)
        execute(inbox, 1, [(1, 1, b"aa", True), (1, 2, b"bb", True)])
        blob = memoryview(b"aabb")
        inbox.data(Data(1, 1, make_column([1, 2]), make_column([2, 2])), blob)
        assert batches[0].blob is blob

    asyncio.run(main())


def test_batches_start_as_they_become_complete() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 1, [(1, 1, b"a", True)])
        execute(inbox, 2, [(1, 2, b"b", True)])
        data(inbox, 2, 1, {2: b"b"})
        data(inbox, 1, 1, {1: b"a"})

    assert [number for number, _, _ in started(main)] == [2, 1]


def test_what_does_not_come_or_has_another_size_is_lost_and_the_rest_runs() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 1, TWO_CLIENTS)
        data(inbox, 1, 1, {10: None, 12: b"d"})
        data(inbox, 1, 2, {10: b"b"})

    assert started(main) == [(1, b"bcccc", {0, 3})]


def test_of_two_requests_with_one_number_one_is_lost_and_others_in_the_batch_are_not_spoilt() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 1, [(1, 10, b"a", True), (2, 20, b"bb", True), (1, 10, b"c", True)])
        data(inbox, 1, 2, {20: b"bb"})
        data(inbox, 1, 1, {10: b"a"})

    assert started(main) == [(1, b"abb", {2})]


def test_nothing_is_waited_for_from_a_client_that_is_gone() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 1, TWO_CLIENTS)
        inbox.gone(1)
        data(inbox, 1, 2, {10: b"b"})

    assert started(main) == [(1, b"bcccc", {0, 3})]


def test_nothing_is_waited_for_beyond_the_limit_and_what_comes_then_is_thrown_away() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 1, TWO_CLIENTS, wait_ns=1_000_000)
        async with asyncio.timeout(10):
            while inbox._waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        data(inbox, 1, 1, {10: b"aa", 12: b"dd"})

    assert started(main) == [(1, b"cccc", {0, 1, 3})]


def test_data_for_a_batch_that_went_elsewhere_is_thrown_away() -> None:
    async def main(inbox: BatchInbox) -> None:
        data(inbox, 1, 1, {1: b"a"})
        execute(inbox, 2, [(1, 1, b"a", True)])
        data(inbox, 2, 1, {1: b"a"})

    assert started(main) == [(2, b"a", set())]


def test_forgetting_ends_the_timers_and_the_numbers_may_begin_anew() -> None:
    async def main(inbox: BatchInbox) -> None:
        execute(inbox, 9, TWO_CLIENTS, wait_ns=1)
        inbox.clear()
        await asyncio.sleep(0)
        execute(inbox, 0, [(1, 1, b"a", True)])
        data(inbox, 0, 1, {1: b"a"})

    assert started(main) == [(0, b"a", set())]
