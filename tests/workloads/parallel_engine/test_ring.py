"""Rings between threads (rules at the top of ``workloads/parallel_engine/ring.py``)."""

from __future__ import annotations

import threading

import numba
import pytest

from symphony_dask.engine.native.compiled import compiled_nogil
from workloads.parallel_engine import ring
from workloads.parallel_engine.ring import WORDS, Ring, make_rings, one_ring


@compiled_nogil
def produce(r: Ring, n: int) -> None:
    i = 0
    while i < n:
        row = ring.writable(r)
        if row >= 0:
            for word in range(WORDS):
                r.cells[row, word] = i * WORDS + word
            ring.publish(r)
            i += 1


@compiled_nogil
def consume(r: Ring, n: int) -> int:
    """How many of ``n`` messages are wrong in any word."""
    wrong = 0
    i = 0
    while i < n:
        row = ring.readable(r)
        if row >= 0:
            good = True
            for word in range(WORDS):
                good = good and r.cells[row, word] == i * WORDS + word
            wrong += 0 if good else 1
            ring.release(r)
            i += 1
    return wrong


def test_a_ring_holds_as_many_messages_as_it_has_room_for_rounded_up_to_a_power_of_two() -> None:
    r = one_ring(make_rings(1, 3), 0)
    assert ring.readable(r) == -1
    for i in range(4):
        row = ring.writable(r)
        assert row == i
        r.cells[row, 0] = 10 + i
        ring.publish(r)
    assert ring.writable(r) == -1
    assert r.cells[ring.readable(r), 0] == 10
    ring.release(r)
    assert ring.writable(r) == 0
    assert r.cells[ring.readable(r), 0] == 11


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the interpreter takes minutes for a million messages")
@pytest.mark.parametrize(("capacity", "n"), [(1, 200), (64, 20_000), (4096, 1_000_000)])
def test_messages_between_two_threads_arrive_whole_and_in_order(capacity: int, n: int) -> None:
    """Where the threads share a core, each time the ring fills it waits for the operating system."""
    r = one_ring(make_rings(1, capacity), 0)
    produce(r, 0)
    assert consume(r, 0) == 0
    producer = threading.Thread(target=produce, args=(r, n))
    producer.start()
    assert consume(r, n) == 0
    producer.join()
    assert ring.readable(r) == -1
