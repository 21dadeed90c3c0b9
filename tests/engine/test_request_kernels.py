"""Taking in frames, laying out batches and settling answers, without a lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symphony_dask.dispatcher.request_table import Intake, RequestTable
from symphony_dask.engine import request_kernels
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.events import EVENT, OPS, Journal
from symphony_dask.engine.journal import Replayer, dump
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.trace import Outcome
from symphony_dask.wire.records import DONE_ROW, SUBMIT_ROW, make_records

NOW = 10**12
SLO_NS = 10**9
INDEX_OF = np.array([-1, 0], np.int32)
SLO_OF = np.array([0, SLO_NS], np.int64)


class Host:
    """An engine with one GPU and a model, number 1 on the wire, behind a table."""

    def __init__(self, max_requests: int = 16, queue_limit: int = 16) -> None:
        self.engine = Engine("eager", max_requests=max_requests)
        latency = LatencyProfile(0.0, 1.0, max_batch=4).latency_ns()
        assert self.engine.add_model(NOW, slo_ns=SLO_NS, latency_ns={0: latency}, queue_limit=queue_limit) == 0
        self.gpu = self.engine.add_gpu(NOW)
        self.table = RequestTable(max_requests)
        self.latencies = np.zeros(request_kernels.LATENCY_BINS + 1, np.int64)

    def admit(self, n: int, blob: bytes = b"", client: int = 0, in_hand_ns: int = 0, **fields: Any) -> Intake | None:
        rows = self.rows(n, **fields)
        return self.table.admit(
            self.engine, rows, memoryview(blob), client=client, now=NOW, margin_ns=0, care_ns=0,
            in_hand_ns=in_hand_ns, index_of=INDEX_OF, slo_of=SLO_OF, serving=True,
        )  # fmt: skip

    def rows(self, n: int, **fields: Any) -> Any:
        return make_records(SUBMIT_ROW, n, **{"model": 1, "id": np.arange(n), **fields})


def test_outcomes_have_the_numbers_of_the_trace() -> None:
    assert (request_kernels.OK, request_kernels.LATE, request_kernels.FAILED, request_kernels.CANCELLED) == (
        Outcome.OK,
        Outcome.LATE,
        Outcome.FAILED,
        Outcome.CANCELLED,
    )


def test_requests_are_kept_with_their_times_and_payloads() -> None:
    host = Host()
    host.table.set_one_way(70, 1000)
    taken = host.admit(3, b"abbbcc", client=70, bytes=[1, 3, 2], age=[0, 5, -5], slo=[0, 7, 0])
    assert taken is not None
    assert not len(taken.evicted)
    rows = host.table.rows(taken.slots)
    assert rows.ids.tolist() == [0, 1, 2]
    assert rows.clients.tolist() == [70] * 3
    assert (rows.arrivals - NOW).tolist() == [-1000, -1005, -1000]
    assert (rows.deadlines - rows.arrivals).tolist() == [SLO_NS, 7, SLO_NS]
    assert [bytes(p) for p in host.table.payloads(taken.slots)] == [b"a", b"bbb", b"cc"]
    out, (held, owner, last, mine) = host.table.lay_out(taken.slots, 70)
    assert (out["id"].tolist(), out["bytes"].tolist(), held, owner, mine) == ([0, 1, 2], [1, 3, 2], 0, 70, 3)
    assert last == NOW - 1000 + SLO_NS
    host.engine.validate()


@pytest.mark.parametrize(("margin_ns", "care_ns", "taken_off_ns"), [(300, 0, 300), (300, 200, 300), (900, 800, 350)])
def test_a_quarter_of_the_slo_at_most_goes_by_care_for_estimates_that_stray(
    margin_ns: int, care_ns: int, taken_off_ns: int
) -> None:
    host = Host()
    rows = host.rows(1, slo=1000)
    taken = host.table.admit(
        host.engine, rows, memoryview(b""), client=0, now=NOW, margin_ns=margin_ns, care_ns=care_ns, index_of=INDEX_OF,
        slo_of=SLO_OF, serving=True,
    )  # fmt: skip
    assert taken is not None
    assert NOW + 1000 - int(host.engine.state.req["deadline"][taken.slots[0]]) == taken_off_ns
    assert int(host.table.deadline[taken.slots[0]]) == NOW + 1000


@pytest.mark.parametrize(
    ("in_hand_ns", "care_ns", "taken_off_ns"),
    [(70, 0, 370), (100, 0, 400), (2**60, 0, 400), (-70, 0, 300), (100, 150, 400), (100, 200, 350), (2**60, 900, 350)],
)
def test_a_tenth_of_the_slo_at_most_goes_by_what_a_client_takes_with_answers_and_with_care_a_quarter(
    in_hand_ns: int, care_ns: int, taken_off_ns: int
) -> None:
    host = Host()
    taken = host.table.admit(
        host.engine, host.rows(1, slo=1000), memoryview(b""), client=0, now=NOW, margin_ns=300 + max(care_ns - 200, 0),
        care_ns=care_ns, in_hand_ns=in_hand_ns, index_of=INDEX_OF, slo_of=SLO_OF, serving=True,
    )  # fmt: skip
    assert taken is not None
    assert NOW + 1000 - int(host.engine.state.req["deadline"][taken.slots[0]]) == taken_off_ns
    assert int(host.table.deadline[taken.slots[0]]) == NOW + 1000


def test_what_clients_take_with_answers_is_in_the_journal_whenever_it_changes() -> None:
    host = Host()
    replayer = Replayer(dump(host.engine), SUBMIT_ROW)
    replayer.apply("wire", NOW, 1, 0, SLO_NS, 0, b"")
    journal = host.engine.journal = Journal()
    times = (0, 50, 50, 7, 0)
    slots = [host.admit(1, in_hand_ns=in_hand_ns, slo=1000).slots[0] for in_hand_ns in times]  # type: ignore[union-attr]
    rows, data = journal.take()
    ops = []
    for code, now, a, b, c, d, size in np.frombuffer(rows, EVENT).tolist():
        ops.append(OPS[code])
        replayer.apply(ops[-1], now, a, b, c, d, data[:size])
        data = data[size:]
    assert ops == ["in_hand", "admit", "in_hand", "admit", "admit", "in_hand", "admit", "in_hand", "admit"]
    for engine in (host.engine, replayer.engine):
        assert [NOW + 1000 - due for due in engine.state.req["deadline"][slots].tolist()] == list(times)


@pytest.mark.parametrize("model", [0, 2, -1])
def test_requests_for_an_unknown_model_are_refused_and_others_are_not(model: int) -> None:
    host = Host()
    taken = host.admit(2, b"ab", bytes=1, model=[model, 1])
    assert taken is not None
    assert (taken.slots < 0).tolist() == [True, False]
    assert taken.refused == 1
    assert [bytes(p) for p in host.table.payloads(taken.slots[1:])] == [b"b"]


@pytest.mark.parametrize(
    ("blob", "fields"), [(b"ab", {"bytes": [1, 2]}), (b"", {"bytes": -1}), (b"a", {"bytes": [1, 1], "held": [1, 1]})]
)
def test_what_does_not_add_up_changes_nothing(blob: bytes, fields: dict[str, Any]) -> None:
    host = Host()
    assert host.admit(2, blob, **fields) is None
    assert host.engine.queued(0) == 0


def test_evicted_requests_keep_their_entries_until_the_host_has_told_them() -> None:
    host = Host(queue_limit=2)
    first = host.admit(2)
    assert first is not None
    urgent = host.rows(1, id=9, priority=1)
    taken = host.table.admit(
        host.engine, urgent, memoryview(b""), client=5, now=NOW, margin_ns=0, care_ns=0, index_of=INDEX_OF,
        slo_of=SLO_OF, serving=True,
    )  # fmt: skip
    assert taken is not None
    (evicted,) = taken.evicted["slot"].tolist()
    assert evicted in first.slots.tolist()
    assert int(host.table.client[evicted]) == 0
    host.table.keep(taken.slots, urgent, memoryview(b""), client=5, now=NOW, slo_of=SLO_OF)
    assert host.table.rows(taken.slots).ids.tolist() == [9]
    assert host.table.rows(taken.slots).clients.tolist() == [5]


def settle(host: Host, slots: Any, blob_bytes: int, failed: set[int], **fields: Any) -> Any:
    counts = np.zeros(len(Outcome), np.int64)
    answers = make_records(DONE_ROW, len(slots), **{"link": -1, **fields})
    host.latencies = np.zeros(request_kernels.LATENCY_BINS + 1, np.int64)
    settled = host.table.settle(
        slots, answers, blob_bytes, now=NOW + 10, failed=failed, counts=counts, latencies=host.latencies
    )
    return settled, counts.tolist()


def test_answers_are_judged_by_when_they_reach_the_client() -> None:
    host = Host()
    near, far = host.admit(2, client=1, slo=[20, 5]), host.admit(2, client=2, slo=[1000, 1000], id=[7, 8])
    assert near is not None
    assert far is not None
    host.table.set_one_way(2, 1001)
    host.table.client[far.slots[1]] = -1  # gone
    slots = np.concatenate([near.slots, far.slots])
    settled, counts = settle(host, slots, 3, set(), bytes=[1, 2, 9, 0], link=[-1, -1, 4, -1])
    assert settled.owner == request_kernels.MIXED
    assert settled.owners.tolist() == [1, 1, 2, -1]
    assert settled.results.tolist() == [(0, 1, -1, 0), (1, 2, -1, 1), (7, 9, 4, 1), (8, 0, -1, 5)]
    assert counts == [1, 2, 0, 0, 0, 1]
    assert (host.table.client[slots] == -1).all()


def test_answers_are_judged_by_when_they_are_in_the_clients_hands() -> None:
    host = Host()
    taken = host.admit(2, client=2, slo=[59, 60], age=44)
    assert taken is not None
    entries = host.table._entries[taken.slots]
    host.table.set_one_way(2, 1, 5)
    settled, counts = settle(host, taken.slots, 0, set())
    assert settled.results["outcome"].tolist() == [1, 0]
    assert settled.answer_ns == 2 * (44 + 10 - 1)  # from the client to the answer, without the ways
    assert host.latencies[request_kernels.LATENCY_BINS] == 2 * (44 + 10 + 1 + 5)
    assert counts == [1, 1, 0, 0, 0, 0]
    assert host.table.back_ns(np.array([2, -1], np.int32), entries).tolist() == [6, 0]


def test_no_more_than_a_tenth_of_the_slo_is_judged_by_as_what_a_client_takes_with_answers() -> None:
    host = Host()
    taken = host.admit(3, client=2, slo=[11, 12, 100])
    assert taken is not None
    entries = host.table._entries[taken.slots]
    host.table.set_one_way(2, 0, 2**60)
    settled, _ = settle(host, taken.slots, 0, set())
    # Of 11 and 12 one each is taken off, of 100 ten.
    assert settled.results["outcome"].tolist() == [0, 0, 0]
    assert host.latencies[request_kernels.LATENCY_BINS] == 11 + 11 + 20
    assert host.table.back_ns(np.array([2, 2, 2], np.int32), entries).tolist() == [1, 1, 10]


def test_latencies_of_answers_are_counted_from_the_client_and_back() -> None:
    host = Host()
    # Ages in ns; answers are settled 10 ns after they came, and take no time back.
    ages = [99_990, 99_991, 111_990, 10**11 - 10, 10**11]
    taken = host.admit(5, client=1, age=ages, slo=[10**12] * 5)
    assert taken is not None
    settle(host, taken.slots, 0, set())
    assert request_kernels.LATENCY_BOUNDS_NS[:3].tolist() == [100_000, 112_000, 125_000]
    assert host.latencies[:3].tolist() == [1, 2, 0]
    assert host.latencies[request_kernels.LATENCY_BINS - 2 :].tolist() == [1, 1, sum(ages) + 50]


def test_requests_without_an_answer_have_no_latency() -> None:
    host = Host()
    taken = host.admit(2, client=3)
    assert taken is not None
    host.table.client[taken.slots[0]] = -1  # gone
    settle(host, taken.slots, 0, {1})
    assert host.latencies.sum() == 0


def test_failed_requests_count_as_failed() -> None:
    host = Host()
    taken = host.admit(2, client=3)
    assert taken is not None
    settled, counts = settle(host, taken.slots, 0, {1})
    assert settled.owner == 3
    assert settled.results["outcome"].tolist() == [Outcome.OK, Outcome.FAILED]
    assert counts == [1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("fields", [{"bytes": [1, 1]}, {"bytes": [-1, 1]}, {"bytes": [2**62, 3]}])
def test_answers_that_do_not_add_up_change_nothing(fields: dict[str, Any]) -> None:
    host = Host()
    taken = host.admit(2, client=3)
    assert taken is not None
    settled, counts = settle(host, taken.slots, 3, set(), **fields)
    assert settled is None
    assert sum(counts) == 0
    assert (host.table.client[taken.slots] == 3).all()


def test_an_empty_batch_is_nobodys() -> None:
    host = Host()
    nothing = np.empty(0, np.int32)
    rows, found = host.table.lay_out(nothing, 70)
    assert len(rows) == 0
    assert found == (0, request_kernels.NOBODY, 0, 0)
    settled, counts = settle(host, nothing, 0, set())
    assert settled.owner == request_kernels.NOBODY
    assert sum(counts) == 0
