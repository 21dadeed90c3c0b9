from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest

from symphony_dask.wire import connection as lane
from symphony_dask.wire.connection import Connection
from symphony_dask.wire.hello import ClientHello, LinkHello
from symphony_dask.wire.messages import Execute, Op, Submit
from symphony_dask.wire.records import (
    DONE_ROW,
    SUBMIT_ROW,
    make_records,
)
from tests.helpers.lane.bench import Bench, on_bench, place_nothing
from tests.helpers.lane.frames import Raw, fields_of, raw_frame
from tests.helpers.lane.server import until


def test_who_has_not_said_hello_cannot_reserve_memory() -> None:
    async def main(bench: Bench) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.dispatcher.port)
        writer.write(struct.pack("<II", 10, lane.MAX_HELLO_BYTES))
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()

    on_bench(main)


@pytest.mark.parametrize(
    "first",
    [
        [Op.HELLO, {"token": "wrong", "versions": [8, 8], "role": "client"}],
        [Op.HELLO, {"token": "naïve", "versions": [8, 8], "role": "client"}],
        [Op.HELLO, {"versions": [8, 8], "role": "client"}],
        [Op.HELLO, "token"],
        [Op.HELLO],
        [Op.SUBMIT, b""],
        [Op.WELCOME, {}],
        [99],
    ],
    ids=str,
)
def test_who_does_not_say_hello_with_the_token_is_turned_away_and_others_are_served(first: list[Any]) -> None:
    async def main(bench: Bench) -> None:
        client = await bench.connect()
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.dispatcher.port)
        writer.write(raw_frame(*first))
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()
        bench.submit(client, [1], [b"still here"])
        assert await bench.answered(1) == [b"still here"]

    on_bench(main)


def test_another_version_is_told_to_install_one_release(caplog: pytest.LogCaptureFixture) -> None:
    text = "the peer speaks lane versions 9 to 12, this release speaks version 8: install one release"

    async def main(bench: Bench) -> None:
        with pytest.raises(ConnectionError, match=text):
            await bench.greet(ClientHello(token=bench.dispatcher.token, versions=(9, 12)))

    on_bench(main)
    assert text in caplog.text


def test_a_client_of_version_7_is_told_so_and_hung_up_on() -> None:
    async def main(bench: Bench) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.dispatcher.port)
        writer.write(raw_frame(Op.HELLO, {"token": bench.dispatcher.token, "version": 7, "role": "client"}))
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()
        (op, text), _ = fields_of(said)
        assert op == Op.REFUSED
        assert text.startswith("the peer speaks lane version 7, this release speaks version 8: install one release")

    on_bench(main)


def test_a_client_that_means_a_worker_is_turned_away() -> None:
    async def main(bench: Bench) -> None:
        with pytest.raises(ConnectionError, match="turned the connection away"):
            await bench.greet(LinkHello(token=bench.dispatcher.token, client=1, link=0))

    on_bench(main)


def _submit(n: int = 1, **fields: Any) -> list[Any]:
    return Submit(make_records(SUBMIT_ROW, n, **{"id": 1, "bytes": 3, **fields})).encode()


@pytest.mark.parametrize(
    "fields",
    [
        _submit(bytes=4),
        _submit(bytes=-3),
        _submit(2),
        _submit(2, bytes=[2**62, 3 - 2**62]),
        _submit(4, bytes=[2**62, 2**62, 2**63 - 1, 4]),
        _submit(held=1),
        [Op.SUBMIT, b"123"],
        [Op.SUBMIT, 7],
        [Op.SUBMIT],
        [Op.DONE, 0, 0, 0, 0, 0, b"", {}, b"", [0, 0, 0]],
        [Op.EXECUTE],
    ],
    ids=[
        "size above the blob",
        "negative size",
        "sizes above the blob",
        "sizes that cancel out",
        "sizes that wrap around",
        "a blob of what is held",
        "half a record",
        "a number",
        "short",
        "of a worker",
        "of the scheduler",
    ],
)
def test_a_client_that_sends_nonsense_is_cut_off_and_others_are_served(fields: list[Any]) -> None:
    async def main(bench: Bench) -> None:
        good, bad = await bench.connect(), await bench.connect()
        bad.send(Raw(*fields), b"abc")
        await until(lambda: bad.closed)
        bench.submit(good, [2], [b"still here"])
        assert await bench.answered(2) == [b"still here"]
        assert bench.dispatcher.status()["clients"] == 1

    on_bench(main)


@pytest.mark.parametrize(
    ("sizes", "errors", "times"),
    [
        ([1], {}, (0, 0, 0)),
        ([2, 2], {}, (0, 0, 0)),
        ([4, -1], {}, (0, 0, 0)),
        ([3, 0], {2: [5, "an error of a third request"]}, (0, 0, 0)),
        ([1, 2], {0: [6, "an error that a worker does not know of"]}, (0, 0, 0)),
        ([1, 2], {0: ["no text"]}, (0, 0, 0)),
        ([1, 2], {}, (0, 2**62, 0)),
        ([1, 2], {}, (-1, 0, 0)),
        ([1, 2], {}, (0, 1.5, 0)),
        ([1, 2], {}, (0, "1", 0)),
    ],
)
def test_a_worker_that_reports_nonsense_is_cut_off_and_its_requests_are_run_elsewhere(
    sizes: list[int], errors: dict[int, Any], times: tuple[Any, ...]
) -> None:
    async def main(bench: Bench) -> None:
        def nonsense(connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
            batch = Execute.decode(fields, blob)
            done = make_records(DONE_ROW, len(sizes), bytes=sizes, link=-1).tobytes()
            head = (Op.DONE, batch.batch, batch.slot, *times)
            connection.send(Raw(*head, done, errors, b"", [0, 0, 0]), bytes(blob))

        good_frame, bench.frame = bench.frame, nonsense  # type: ignore[method-assign]
        bench.dispatcher.drop_worker("w")
        bad = await bench.connect("bad")
        bench.frame = good_frame  # type: ignore[method-assign]
        client = await bench.connect()
        bench.submit(client, [1, 2], [b"a", b"bc"])
        await until(lambda: bad.closed)
        await bench.connect("good")
        assert await bench.answered(1, 2) == [b"a", b"bc"]
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_requests_of_absurd_ages_and_slos_do_not_keep_others_from_being_served() -> None:
    ends = [2**63 - 1, -(2**63), 2**62, 2**61, -1, 0]

    async def main(bench: Bench) -> None:
        good, odd = await bench.connect(), await bench.connect()
        place_nothing(bench.dispatcher)
        rows = [(slo, age) for slo in ends for age in ends]
        slos, ages = zip(*rows, strict=True)
        ids = range(100, 100 + len(rows))
        odd.send(Submit(make_records(SUBMIT_ROW, len(rows), id=ids, bytes=1, slo=slos, age=ages)), b"x" * len(rows))
        bench.submit(good, [1], [b"served"])
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] > 1)
        await bench.connect("v")
        assert await bench.answered(1) == [b"served"]
        await bench.answered(*ids)  # in one way or another
        bench.dispatcher.engine.validate()

    on_bench(main)


def test_what_a_client_says_of_held_payloads_does_not_spoil_the_batch_of_another() -> None:
    async def main(bench: Bench) -> None:
        batches: list[Execute] = []

        def watch(connection: Connection[None], op: int, fields: list[Any], blob: memoryview) -> None:
            if op == Op.EXECUTE:
                batches.append(Execute.decode(fields, blob))

        good = await bench.connect()
        place_nothing(bench.dispatcher)
        bench.frame = watch  # type: ignore[method-assign]
        odd = await bench.connect()
        rows = make_records(SUBMIT_ROW, 2, id=[8, 9], bytes=[5, 5], held=[1, -1])  # which cancelled out once
        odd.send(Submit(rows))
        bench.submit(good, [1], [b"served"])
        await until(lambda: bench.dispatcher.status()["models"]["m"]["queued"] == 3)
        await bench.connect("v")
        await until(lambda: batches)
        assert sorted(batches[0].rows["held"].tolist()) == [0, 1, 1]
        assert batches[0].wait_ns > 0

    on_bench(main)
