"""Does a host's work for each request, compiled: takes in a frame, lays out a batch, settles its answers.

The host keeps an ``ENTRY`` for each of the engine's slots. Array operations would cost it 2 to 10 us each for a frame
of a few requests, and a call of these costs some 6 us for all. Frames are records with the fields named here; they are
read only, as they come off the wire. Client numbers are 0 and up; -1 stands for nobody.

Times are ns on the host's clock.
"""

from __future__ import annotations

import numpy as np

from symphony_dask.engine.kernels import NO_MODEL, list_evicted, submit_one
from symphony_dask.engine.native.arrays import Int8s, Int32s, Int64s, Record, Records
from symphony_dask.engine.native.compiled import compiled, inlined, wide
from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.engine.state import State

#: What is kept of a request. deadline is the client's; retries counts lost workers; held: the client keeps the payload.
ENTRY = np.dtype(
    [
        ("id", "i8"),
        ("arrival", "i8"),
        ("deadline", "i8"),
        ("bytes", "i8"),
        ("client", "i4"),
        ("retries", "i1"),
        ("held", "i1"),
    ],
    align=True,
)

#: A frame that does not fit its payloads.
MALFORMED = -3

#: Of a request's SLO one part in so many, at most, goes by care (``admit``).
CARE_PARTS = 4

#: And one part in so many, at most, by what its client takes with answers: a client that is slow, or says that it is,
#: gives the GPUs that much less time for its requests, and no less.
IN_HAND_PARTS = 10

#: Longer SLOs are this long, ns: a sum with any time on the clock fits 64 bits.
MOST_SLO_NS = 1 << 61

#: Of ``settle``: the requests are of several clients, or of none any more.
MIXED, NOBODY = -2, -1

# How requests end, with the numbers of ``trace.Outcome``.
OK, LATE, FAILED, CANCELLED = 0, 1, 4, 5

#: Up to where the bins of a latency histogram reach, ns: 20 a decade from 0.1 ms to 100 s, at preferred numbers
#: (ISO 3, series R20), and one bin for all above.
LATENCY_BOUNDS_NS = np.array(
    [
        round(step * 10**exponent)
        for exponent in range(5, 11)
        for step in (
            1, 1.12, 1.25, 1.4, 1.6, 1.8, 2, 2.24, 2.5, 2.8, 3.15, 3.55, 4, 4.5, 5, 5.6, 6.3, 7.1, 8, 9,
        )
    ]
    + [10**11],
    np.int64,
)  # fmt: skip

LATENCY_BINS = len(LATENCY_BOUNDS_NS) + 1


@inlined
def _count_latency(latencies: Int64s, took: int) -> None:
    low, high = 0, len(LATENCY_BOUNDS_NS)
    while low < high:
        middle = (low + high) // 2
        if took <= LATENCY_BOUNDS_NS[middle]:
            high = middle
        else:
            low = middle + 1
    latencies[low] += 1
    latencies[LATENCY_BINS] += took


@inlined
def _arrival(row: Record, now: int, one_way: int) -> int:
    return now - min(max(int(row.age), 0), now) - one_way


@inlined
def _deadline(slo_of: Int64s, row: Record, arrival: int) -> int:
    slo = int(row.slo)
    if slo <= 0:
        slo = int(slo_of[row.model]) if 0 <= row.model < len(slo_of) else 0
    return arrival + min(slo, MOST_SLO_NS)


@compiled
def admit(
    s: State,
    table: Records,
    index_of: Int32s,
    slo_of: Int64s,
    rows: Records,
    blob_bytes: int,
    client: int,
    now: int,
    one_way: int,
    margin: int,
    care: int,
    in_hand: int,
    serving: bool,
    slots: Int32s,
    evicted: Records,
) -> tuple[int, int]:
    """Queue the requests of a frame, and keep an entry for each.

    Returns how many earlier requests were evicted (MALFORMED, with nothing done, if the frame does not add up), and how
    many of the frame got no slot.

    index_of, slo_of: the engine's model (-1: none) and its SLO by the model's number on the wire.
    rows: (n,) with id, slo (0: the model's), age (since the client took it), model, bytes, priority, held.
    one_way: from the client to here; margin: what its deadline is ahead of the end of work on a GPU.
    care: what of the margin is for estimates that stray. A quarter of a request's SLO goes by that at most: else one
        stall would have all requests given up unseen, and with none of them served, no better estimate ever come.
    in_hand: how long the client nearly always takes until it has a batch of answers in hand; the margin is without it.
        A tenth of a request's SLO goes by it at most, and with care a quarter.
    serving: whether there is a GPU at all. slots: (n,) out, as of ``Engine.submit``.
    evicted: out, records of ``state.EVICTED``. If there are any, no entry is kept yet: the host ends those first, and
        then calls ``keep``.
    """
    inline = 0
    for i in range(len(rows)):
        row = rows[i]
        if row.bytes < 0 or (row.held == 0 and row.bytes > blob_bytes):
            return MALFORMED, 0
        if row.held == 0:
            inline += row.bytes
    if inline != blob_bytes:
        return MALFORMED, 0
    n = wide(0)
    for i in range(len(rows)):
        row = rows[i]
        m = wide(NO_MODEL)
        if serving and 0 <= row.model < len(index_of):
            m = wide(index_of[row.model])
        priority = min(max(wide(row.priority), 0), MOST_PRIORITY)
        arrival = _arrival(row, now, one_way)
        deadline = _deadline(slo_of, row, arrival)
        slo = deadline - arrival
        in_client = min(max(in_hand, 0), slo // IN_HAND_PARTS)
        due = deadline - margin - in_client + max(care + in_client - slo // CARE_PARTS, 0)
        slots[i] = submit_one(s, now, m, due, int(row.id), priority) if m >= 0 else NO_MODEL
        n = list_evicted(s, slots, i, evicted, n)
    refused = 0
    for i in range(len(rows)):
        if slots[i] < 0:
            refused += 1
    if n == 0:
        keep(table, slo_of, rows, client, now, one_way, slots)
    return n, refused


@compiled
def keep(table: Records, slo_of: Int64s, rows: Records, client: int, now: int, one_way: int, slots: Int32s) -> None:
    """Keep an entry for each request that got a slot; see ``admit``."""
    for i in range(len(rows)):
        if slots[i] >= 0:
            row = rows[i]
            entry = table[slots[i]]
            arrival = _arrival(row, now, one_way)
            entry.id = row.id
            entry.arrival = arrival
            entry.deadline = _deadline(slo_of, row, arrival)
            entry.bytes = row.bytes
            entry.client = client
            entry.retries = 0
            entry.held = 1 if row.held != 0 else 0


@compiled
def lay_out(table: Records, slots: Int32s, local: int, rows: Records) -> tuple[int, int, int, int]:
    """Fill in the rows of a batch (id, bytes, client, held).

    Returns how many are held, the one client that they are all of (else MIXED, NOBODY for an empty batch), the last
    deadline, and how many are of the client numbered ``local``.
    """
    if len(slots) == 0:
        return 0, wide(NOBODY), 0, 0
    held = 0
    last = 0
    mine = 0
    owner = wide(table[slots[0]].client)
    for i in range(len(slots)):
        entry = table[slots[i]]
        rows[i].id = entry.id
        rows[i].bytes = entry.bytes
        rows[i].client = entry.client
        rows[i].held = entry.held
        held += wide(entry.held)
        if entry.client != owner:
            owner = MIXED
        last = max(last, int(entry.deadline))
        if entry.client == local:
            mine += 1
    return held, owner, last, mine


@compiled
def settle(
    table: Records,
    slots: Int32s,
    answers: Records,
    blob_bytes: int,
    now: int,
    one_way: Int64s,
    in_hand: Int64s,
    failed: Int8s,
    results: Records,
    owners: Int32s,
    counts: Int64s,
    latencies: Int64s,
    kept: Records,
) -> tuple[int, int, int]:
    """Decide how the requests of a batch ended, and have their entries be nobody's.

    Returns the one client that they are all of, or else MIXED or NOBODY; how many were answered, and how long these
    took here, all together, ns: from the client and back, without the ways, which are estimates. MALFORMED, with
    nothing done, if the answers do not add up.

    answers: (n,) with bytes and link (-1: in the blob, of ``blob_bytes``). failed: (n,), or empty if none did.
    one_way: by client, how long an answer takes to get there; in_hand: and then until it is in the client's hands;
        of a request's SLO a tenth counts as that at most.
    results: (n,) out, with id, bytes, link, outcome. owners: (n,) out, clients. counts: of outcomes, added to.
    latencies: (LATENCY_BINS + 1,), added to: how many of the requests that were answered took how long, from the client
        until in its hands, and at last the sum, ns.
    kept: (n,) out, the entries as they were; empty if nobody wants them.
    """
    n = len(slots)
    if len(answers) != n:
        return MALFORMED, 0, 0
    here = 0
    for i in range(n):
        if answers[i].bytes < 0 or (answers[i].link < 0 and answers[i].bytes > blob_bytes):
            return MALFORMED, 0, 0
        if answers[i].link < 0:
            here += answers[i].bytes
    if here != blob_bytes:
        return MALFORMED, 0, 0
    answered = wide(0)
    answer_ns = wide(0)
    owner = wide(table[slots[0]].client) if n > 0 else wide(NOBODY)
    for i in range(n):
        entry = table[slots[i]]
        client = wide(entry.client)
        if client != owner:
            owner = MIXED
        if client < 0:
            outcome = CANCELLED
        elif len(failed) > 0 and failed[i] != 0:
            outcome = FAILED
        else:
            way = one_way[client] if client < len(one_way) else 0
            most = max(int(entry.deadline - entry.arrival), 0) // IN_HAND_PARTS
            reaches = now + way + min(in_hand[client] if client < len(in_hand) else 0, most)
            outcome = OK if reaches <= entry.deadline else LATE
            _count_latency(latencies, reaches - entry.arrival)
            answered += 1
            answer_ns += now - entry.arrival - way
        results[i].id = entry.id
        results[i].bytes = answers[i].bytes
        results[i].link = answers[i].link
        results[i].outcome = outcome
        owners[i] = client
        counts[outcome] += 1
        if len(kept) > 0:
            kept[i].id = entry.id
            kept[i].arrival = entry.arrival
            kept[i].deadline = entry.deadline
            kept[i].bytes = entry.bytes
            kept[i].client = client
        entry.client = NOBODY
    return owner, answered, answer_ns
