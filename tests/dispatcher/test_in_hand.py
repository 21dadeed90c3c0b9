"""What an SLO covers: until an answer is in the client's hands, by pings behind answers."""

from __future__ import annotations

from typing import Any

import pytest

from symphony_dask.dispatcher.sessions import FOLLOW_NS, Client
from symphony_dask.trace import Outcome
from symphony_dask.wire.messages import Ping, Result, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_records
from tests.helpers.lane.bench import Bench, on_bench
from tests.helpers.lane.server import until

MS = 1_000_000


def heard(alone_ns: int, behind_ns: int, n: int = 50) -> Client:
    """A client whose pings took so long alone and behind answers."""
    client = Client(0)
    for behind, took_ns in [(False, alone_ns)] * n + [(True, behind_ns)] * n:
        client.behind = behind
        client.ponged(took_ns)
    return client


def test_what_a_ping_takes_longer_behind_answers_is_how_long_the_client_has_with_them() -> None:
    client = heard(1 * MS, 6 * MS)
    assert client.one_way_ns() == MS // 2
    assert client.in_hand.mean_ns == pytest.approx(5 * MS, rel=0.01)
    assert client.back_bound_ns() == pytest.approx(5.5 * MS, rel=0.01)


def test_one_stall_of_a_client_takes_few_milliseconds_off_and_is_forgotten_within_a_second() -> None:
    client = heard(1 * MS, 2 * MS)
    before_ns = client.back_bound_ns()
    client.ponged(10_000 * MS)
    assert client.back_bound_ns() < before_ns + 5 * MS
    for _ in range(1_000 * MS // FOLLOW_NS):
        client.ponged(2 * MS)
    assert client.back_bound_ns() < before_ns + MS // 2


def test_a_ping_behind_answers_that_is_quick_shows_that_the_network_is() -> None:
    client = heard(30 * MS, 30 * MS)
    client.behind = True
    for _ in range(1_000 * MS // FOLLOW_NS):
        client.ponged(2 * MS)
    assert client.one_way_ns() < 3 * MS
    for _ in range(50):
        client.ponged(7 * MS)
    assert client.one_way_ns() < 3 * MS
    assert client.in_hand.mean_ns > 2 * MS


def test_what_is_not_measured_any_more_counts_for_less() -> None:
    client = heard(1 * MS, 6 * MS)
    client.look()
    assert client.in_hand.mean_ns == pytest.approx(5 * MS, rel=0.01)
    for _ in range(300):
        client.look()
    assert client.in_hand.bound_ns() < MS // 2


def test_a_ping_goes_behind_answers_but_not_behind_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("symphony_dask.dispatcher.dispatcher.FOLLOW_NS", 1_000_000 * MS)
    monkeypatch.setattr("symphony_dask.dispatcher.dispatcher.MEASURE_S", 1_000.0)  # no pings but these

    async def main(bench: Bench) -> None:
        client = await bench.connect()
        (connection,) = bench.dispatcher._clients.values()
        connection.peer.followed_ns = -1_000_000 * MS
        await until(lambda: not connection.peer.pinged)
        sent: list[type] = []
        send: Any = connection.send
        monkeypatch.setattr(connection, "send", lambda message, *blobs: (sent.append(type(message)), send(message)))
        bench.submit(client, [1], [b""])
        await bench.answered(1)
        await until(lambda: not connection.peer.pinged)
        bench.submit(client, [2], [b""])
        await bench.answered(2)
        assert [kind for kind in sent if kind is Result] == [Result] * 2
        assert sent[sent.index(Result) + 1] is Ping
        assert connection.peer.in_hand.samples == 1

    on_bench(main)


def test_an_answer_that_is_in_hand_after_its_deadline_is_late_for_that_client_alone() -> None:
    async def main(bench: Bench) -> None:
        slow, quick = await bench.connect(), await bench.connect()
        made = bench.dispatcher
        counts = made.models[0].counts
        peer = made._clients[0].peer
        # As measured over and over: the client takes a minute with each answer.
        peer.in_hand.mean_ns = 60_000.0 * MS
        made._requests.set_one_way(peer.index, 0, 60_000 * MS)
        rows = make_records(SUBMIT_ROW, 1, id=1, slo=10_000 * MS)
        slow.send(Submit(rows))
        await bench.answered(1)
        # Not dropped: what is taken off for a client is a quarter of its SLO at most.
        assert (counts[Outcome.LATE], counts[Outcome.DROPPED]) == (1, 0)
        bench.answers.clear()
        quick.send(Submit(rows))
        await bench.answered(1)
        assert (counts[Outcome.OK], counts[Outcome.LATE]) == (1, 1)

    on_bench(main)
