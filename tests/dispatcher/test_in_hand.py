"""What an SLO covers: until an answer is in the client's hands, by pings behind answers."""

from __future__ import annotations

from typing import Any

import pytest

from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.dispatcher.sessions import FOLLOW_NS, MOST_ROUND_TRIP_NS, Client
from symphony_dask.trace import Outcome
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.messages import Ping, Pong, Result, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_records
from tests.helpers.lane.bench import Bench, on_bench
from tests.helpers.lane.server import until

MS = 1_000_000
MINUTE = 60_000 * MS


def heard(alone_ns: int, behind_ns: int, n: int = 50) -> Client:
    """A client whose pings took so long alone and behind answers."""
    client = Client(0)
    for behind, took_ns in [(False, alone_ns)] * n + [(True, behind_ns)] * n:
        client.behind = behind
        client.ponged(took_ns, 0)
    return client


def stand_in(made: Dispatcher, index: int, in_hand_ns: int) -> None:
    """Have a client have taken so long with its answers, over and over."""
    peer = made._clients[index].peer
    peer.in_hand.typical_ns = peer.in_hand.bound_ns = in_hand_ns
    peer.in_hand.samples = 1
    made._set_ways(peer)


async def ask(bench: Bench, client: Connection[None], request: int, slo_ns: int, age_ns: int = 0) -> None:
    client.send(Submit(make_records(SUBMIT_ROW, 1, id=request, slo=slo_ns, age=age_ns)))
    await bench.answered(request)


@pytest.fixture
def few_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pings but the first, and one behind the first answer."""
    monkeypatch.setattr("symphony_dask.dispatcher.dispatcher.FOLLOW_NS", 1_000_000 * MS)
    monkeypatch.setattr("symphony_dask.dispatcher.dispatcher.MEASURE_S", 1_000.0)


def test_what_a_ping_takes_longer_behind_answers_is_how_long_the_client_has_with_them() -> None:
    client = heard(1 * MS, 6 * MS)
    assert client.one_way_ns() == MS // 2
    assert client.in_hand.typical_ns == pytest.approx(5 * MS, rel=0.01)
    assert client.in_hand.bound_ns == pytest.approx(5 * MS, rel=0.01)


def test_two_stalls_of_a_client_change_nothing() -> None:
    client = heard(1 * MS, 2 * MS)
    before_ns = client.in_hand.bound_ns
    for took_ns in (10_000 * MS, 100 * MS):
        client.ponged(took_ns, 0)
    assert client.in_hand.bound_ns == before_ns
    assert client.one_way_ns() == MS // 2


def test_what_a_busy_client_takes_is_not_taken_for_the_network() -> None:
    client = Client(0)
    for n in range(40):
        client.ponged(1 * MS if n % 10 == 0 else 30 * MS, 0)
    client.behind = True
    for _ in range(20):
        client.ponged(31 * MS, 0)
    assert client.one_way_ns() == MS // 2
    assert client.in_hand.typical_ns == 30 * MS


def test_a_ping_behind_answers_that_is_quick_shows_that_the_network_is() -> None:
    client = heard(30 * MS, 30 * MS)
    client.behind = True
    for _ in range(1_000 * MS // FOLLOW_NS):
        client.ponged(2 * MS, 0)
    assert client.one_way_ns() == 1 * MS
    for _ in range(50):
        client.ponged(7 * MS, 0)
    assert client.one_way_ns() == 1 * MS
    assert client.in_hand.typical_ns == 5 * MS


def test_a_round_trip_counts_as_a_minute_at_most_whatever_a_client_says() -> None:
    client = heard(1 << 63, 1 << 63)
    assert client.one_way_ns() <= MOST_ROUND_TRIP_NS // 2
    assert client.in_hand.bound_ns <= MOST_ROUND_TRIP_NS


@pytest.mark.usefixtures("few_pings")
def test_a_ping_goes_behind_answers_but_not_behind_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        (connection,) = bench.dispatcher._clients.values()
        connection.peer.followed_ns = -1_000_000 * MS
        await until(lambda: not connection.peer.pinged)
        sent: list[type] = []
        send: Any = connection.send
        monkeypatch.setattr(connection, "send", lambda message, *blobs: (sent.append(type(message)), send(message)))
        for request in (1, 2):
            await ask(bench, client, request, MINUTE)
            await until(lambda: not connection.peer.pinged)
        assert sent == [Result, Ping, Result]

    on_bench(main)


@pytest.mark.usefixtures("few_pings")
def test_pongs_that_nobody_asked_for_tell_nothing() -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        (connection,) = bench.dispatcher._clients.values()
        connection.peer.followed_ns = 1_000_000 * MS  # no ping behind answers
        await until(lambda: not connection.peer.pinged)
        before = connection.peer.round_trip.samples
        for _ in range(100):
            client.send(Pong(0))
        await ask(bench, client, 1, MINUTE)
        assert connection.peer.round_trip.samples == before

    on_bench(main)


@pytest.mark.usefixtures("few_pings")
def test_a_slow_client_loses_a_tenth_of_its_slo_and_no_request() -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        made = bench.dispatcher
        counts = made.models[0].counts
        stand_in(made, 0, MINUTE)
        for request in range(20):
            await ask(bench, client, request, 10_000 * MS)
        assert (counts[Outcome.OK], counts[Outcome.DROPPED]) == (20, 0)

    on_bench(main)


@pytest.mark.usefixtures("few_pings")
def test_an_answer_that_is_in_hand_after_its_deadline_is_late_for_that_client_alone() -> None:
    async def main(bench: Bench) -> None:
        slow, quick = await bench.connect(), await bench.connect()
        made = bench.dispatcher
        counts = made.models[0].counts
        stand_in(made, 0, MINUTE)
        due: list[int] = []
        settle: Any = made._requests.settle

        def at_the_end(*args: Any, now: int, **more: Any) -> Any:
            # As if the batch had ended a twentieth of the SLO before the deadline.
            due[:] = made._requests.deadline[args[0]].tolist()
            return settle(*args, now=due[0] - MINUTE // 20, **more)

        made._requests.settle = at_the_end  # type: ignore[method-assign]
        await ask(bench, slow, 1, MINUTE)
        assert (counts[Outcome.OK], counts[Outcome.LATE]) == (0, 1)
        await ask(bench, quick, 2, MINUTE)
        assert (counts[Outcome.OK], counts[Outcome.LATE]) == (1, 1)

    on_bench(main)


@pytest.mark.usefixtures("few_pings")
@pytest.mark.parametrize("in_hand_ns", [0, MINUTE])
def test_requests_past_their_deadline_are_dropped_however_slow_their_client_says_it_is(in_hand_ns: int) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        made = bench.dispatcher
        stand_in(made, 0, in_hand_ns)
        await ask(bench, client, 1, MINUTE, age_ns=2 * MINUTE)
        assert made.models[0].counts[Outcome.DROPPED] == 1
        assert bench.batches == []

    on_bench(main)


@pytest.mark.usefixtures("few_pings")
def test_what_all_are_told_of_clients_is_the_median_that_no_single_one_changes() -> None:
    async def main(bench: Bench) -> None:
        for _ in range(4):  # the last asks for nothing
            await bench.connect()
        made = bench.dispatcher
        peers = [connection.peer for connection in made._clients.values()]
        await until(lambda: not any(peer.pinged for peer in peers))
        peers[3].round_trip.samples = 0
        for peer, round_trip_ms, in_hand_ms in zip(peers, (60_000, 2, 1), (1, 60_000, 3), strict=False):
            peer.round_trip.samples, peer.round_trip.least_ns = 1, round_trip_ms * MS
            stand_in(made, peer.index, in_hand_ms * MS)
        status = made.status()
        assert (status["client_round_trip_ns"], status["client_in_hand_ns"]) == (2 * MS, 3 * MS)
        assert made.network_ns() < 10 * MS

    on_bench(main)


@pytest.mark.usefixtures("few_pings")
def test_a_drop_is_followed_by_a_ping_so_that_no_estimate_needs_answers_to_be_corrected() -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        made = bench.dispatcher
        (connection,) = made._clients.values()
        await until(lambda: not connection.peer.pinged)
        connection.peer.followed_ns = -1_000_000 * MS
        await ask(bench, client, 1, MS, age_ns=MINUTE)
        assert made.models[0].counts[Outcome.DROPPED] == 1
        assert connection.peer.followed_ns > 0

    on_bench(main)
