"""Every message of the lane: its bytes, which do not change within a version, and what its decoder refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symphony_dask.errors import BadInput
from symphony_dask.wire import directions, hello
from symphony_dask.wire.connection import Message
from symphony_dask.wire.error_codes import ErrorCode, Failure
from symphony_dask.wire.hello import ClientHello, LinkHello, Refused, VersionMismatch, Welcome, WorkerHello, read_hello
from symphony_dask.wire.messages import (
    Answer,
    Aside,
    Cancel,
    Data,
    Done,
    Execute,
    Gone,
    IsAside,
    Op,
    Ping,
    Place,
    Pong,
    Result,
    Resume,
    Submit,
    in_parts,
)
from symphony_dask.wire.records import (
    DONE_ROW,
    EXECUTE_ROW,
    RESULT_ROW,
    SUBMIT_ROW,
    make_column,
    make_records,
    read_column,
)
from tests.helpers.lane.frames import fields_of, frame

TOKEN = "0123456789abcdef"
#: The frames of each version of the lane, in hexadecimal digits, by the names of ``EXAMPLES``.
GOLDEN = {
    file.stem: {name: bytes.fromhex(digits) for name, digits in json.loads(file.read_text()).items()}
    for file in Path(__file__).with_name("golden").iterdir()
}

#: One of each, by the name of its golden frame, with its blob.
EXAMPLES: dict[str, tuple[Message, bytes]] = {
    "hello-client": (ClientHello(token=TOKEN), b""),
    "hello-worker": (
        WorkerHello(
            token=TOKEN, worker="tcp://10.0.0.2:4000", host="gpu-1", slots=2, gpu_class="H100", lane=("10.0.0.2", 4001),
            memory=1 << 34,
        ),
        b"",
    ),
    "hello-link": (LinkHello(token=TOKEN, client=3, link=1), b""),
    "welcome": (Welcome(version=8, connection=3, inline_bytes=8192, wait_ns=2_000_000_000), b""),
    "refused": (Refused("the peer speaks lane version 7"), b""),
    "ping": (Ping(123_456_789), b""),
    "pong": (Pong(123_456_789), b""),
    "submit": (
        Submit(
            make_records(
                SUBMIT_ROW, 2, id=[7, 8], slo=[0, 25_000_000], age=[1000, 0], bytes=[3, 9000], model=[0, 1],
                priority=[0, 7], held=[0, 1],
            )
        ),
        b"abc",
    ),
    "cancel": (Cancel(make_column([7, 8])), b""),
    "result": (
        Result(
            make_records(RESULT_ROW, 3, id=[7, 8, 9], bytes=[2, 0, 9000], link=[-1, -1, 1], outcome=[0, 4, 1]),
            {1: Failure(ErrorCode.MODEL_ERROR, "ValueError: no face found")},
        ),
        b"ok",
    ),
    "execute": (
        Execute(
            5, 1, 2, make_records(EXECUTE_ROW, 2, id=[7, 8], bytes=[3, 9000], client=[0, 3], held=[0, 1]), 450_000_000,
            {0: "'key' for request 7"},
        ),
        b"abc",
    ),
    "done": (
        Done(
            5, 1, 1000, 2000, 3500, make_records(DONE_ROW, 3, bytes=[2, 0, 9000], link=[-1, -1, 1]),
            {1: Failure(ErrorCode.TASK_LATE, "late")}, make_column([1]), (100, 1800, 100),
        ),
        b"ok",
    ),
    "place": (Place(5, "10.0.0.2", 4001, make_column([8])), b""),
    "data": (Data(5, 3, make_column([8, 9]), make_column([4, -1])), b"data"),
    "gone": (Gone(3), b""),
    "answer": (Answer(3, make_column([8, 9]), make_column([3, 1])), b"abcd"),
    "aside": (Aside(1, 5, 2), b""),
    "is-aside": (IsAside(1, 5), b""),
    "resume": (Resume(1, -1), b""),
}  # fmt: skip

CLASSES = {
    cls.__name__: cls
    for cls in (
        Answer, Aside, Cancel, Data, Done, Execute, Gone, IsAside, Ping, Place, Pong, Refused, Result, Resume, Submit,
        Welcome,
    )
}  # fmt: skip


def decoded(message: Message, fields: list[Any], blob: memoryview) -> Message:
    if isinstance(message, (ClientHello, WorkerHello, LinkHello)):
        return read_hello(fields, TOKEN)[0]
    found: Message = CLASSES[type(message).__name__].decode(fields, blob)
    return found


def plain(message: Any) -> Any:
    """With arrays as lists, which compare as one."""
    values = message if isinstance(message, tuple) else [message]
    return type(message), [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_has_the_bytes_of_its_version(name: str) -> None:
    message, blob = EXAMPLES[name]
    golden = GOLDEN["version-8"][name]
    assert frame(message, blob) == golden
    (op, *fields), got_blob = fields_of(golden)
    assert op == message.encode()[0]
    again = decoded(message, fields, got_blob)
    assert plain(again) == plain(message)
    assert frame(again, bytes(got_blob)) == golden


def test_every_op_has_a_golden_frame() -> None:
    assert {message.encode()[0] for message, _ in EXAMPLES.values()} == {
        op for name, op in vars(Op).items() if name.isupper()
    }
    assert set(GOLDEN["version-8"]) == set(EXAMPLES)


def test_a_client_of_version_7_is_told_both_versions_and_the_remedy() -> None:
    (op, *fields), _ = fields_of(GOLDEN["version-7"]["hello-client"])
    assert op == Op.HELLO
    with pytest.raises(VersionMismatch) as refusal:
        read_hello(fields, TOKEN)
    assert str(refusal.value) == (
        "the peer speaks lane version 7, this release speaks version 8: install one release of symphony-dask on "
        "clients, scheduler and workers"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [((8, 8), (8, 8), 8), ((8, 10), (9, 12), 10), ((9, 12), (8, 10), 10), ((8, 9), (1, 8), 8)],
)
def test_the_highest_version_that_both_speak_is_taken(
    ours: tuple[int, int], theirs: tuple[int, int], version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hello, "VERSIONS", ours)
    assert read_hello([said(theirs)], TOKEN)[1] == version


@pytest.mark.parametrize(("ours", "theirs"), [((8, 9), (10, 12)), ((8, 9), (3, 7))])
def test_without_a_common_version_both_ranges_are_named(
    ours: tuple[int, int], theirs: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hello, "VERSIONS", ours)
    text = f"versions {theirs[0]} to {theirs[1]}, this release speaks versions 8 to 9: install one release"
    with pytest.raises(VersionMismatch, match=text):
        read_hello([said(theirs)], TOKEN)


def said(versions: tuple[int, int]) -> dict[str, Any]:
    return {"token": TOKEN, "versions": list(versions), "role": "client"}


def test_what_a_later_release_says_more_in_hello_is_passed_over() -> None:
    assert read_hello([said((8, 99)) | {"zone": "b"}], TOKEN) == (ClientHello(token=TOKEN, versions=(8, 99)), 8)


def test_a_failure_of_an_unknown_code_is_a_request_error() -> None:
    assert type(Failure(31, "new").error()).__name__ == "RequestError"
    assert type(Failure(4000, "new").error()).__name__ == "SymphonyError"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=64)
    | st.integers(0, 4).map(lambda n: bytes(16 * n)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers(-2, 5) | st.text(max_size=5) | st.binary(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(CLASSES)), fields=st.lists(VALUES, max_size=9), blob=st.binary(max_size=16))
def test_a_decoder_raises_nothing_but_bad_input(name: str, fields: list[Any], blob: bytes) -> None:
    with suppress(BadInput):
        CLASSES[name].decode(fields, memoryview(blob))


@settings(max_examples=400)
@given(
    name=st.sampled_from([name for name in EXAMPLES if not name.startswith("hello")]), at=st.integers(0), value=VALUES
)
def test_a_message_with_one_field_replaced_is_read_or_refused(name: str, at: int, value: Any) -> None:
    message, blob = EXAMPLES[name]
    (_, *fields), _ = fields_of(frame(message, blob))
    fields[at % len(fields)] = value
    with suppress(BadInput):
        again = decoded(message, fields, memoryview(blob))
        frame(again, blob)  # what was read can be written


@given(
    said=st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
    role=st.sampled_from(["client", "worker", "link"]) | VALUES,
    versions=st.just([8, 8]) | VALUES,
    more=st.dictionaries(
        st.sampled_from(["worker", "host", "slots", "gpu_class", "lane", "memory", "client", "link", "version"]), VALUES
    ),
)
def test_a_hello_is_read_or_refused(said: dict[str, Any], role: Any, versions: Any, more: dict[str, Any]) -> None:
    with suppress(BadInput):
        read_hello([said | more | {"token": TOKEN, "role": role, "versions": versions}], TOKEN)


@given(token=VALUES)
def test_a_wrong_token_is_refused_whatever_it_is(token: Any) -> None:
    if token != TOKEN:
        with pytest.raises(BadInput, match="wrong token"):
            read_hello([{"token": token, "versions": [8, 8], "role": "client"}], TOKEN)


def done(**changed: Any) -> Done:
    """Of a batch of one request."""
    return Done(5, 0, 0, 0, 0, make_records(DONE_ROW, 1), {}, make_column([]), (0, 0, 0))._replace(**changed)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (done(slot=-1), "lane DONE has slot -1: give a whole number from 0"),
        (done(run_ns=-9), "lane DONE has time -9: give a whole number from 0"),
        (done(lost=make_column([1])), "lane DONE has lost payloads list of 1: the batch has 1 requests"),
        (done(failures={1: Failure(5, "")}), "lane DONE has errors dict of 1: give a map of places below 1"),
        (done(failures={0: Failure(6, "")}), r"lane DONE has error code 6: give one of \[5, 11\]"),
        (Place(5, "h", 65_536, make_column([])), "lane PLACE has port 65536: give a whole number from -?0 to 65535"),
        (Gone(-1), "lane GONE has client -1"),
    ],
)
def test_an_error_names_the_message_the_field_and_the_value(message: Message, why: str) -> None:
    (_, *fields), blob = fields_of(frame(message))
    with pytest.raises(BadInput, match=why):
        decoded(message, fields, blob)


def test_what_does_not_come_from_a_peer_is_not_read() -> None:
    for direction, op in (
        (directions.CLIENT_TO_SCHEDULER, Op.DONE),
        (directions.WORKER_TO_SCHEDULER, Op.SUBMIT),
        (directions.SCHEDULER_TO_CLIENT, Op.EXECUTE),
        (directions.SCHEDULER_TO_WORKER, Op.RESULT),
        (directions.CLIENT_TO_WORKER, Op.ANSWER),
        (directions.WORKER_TO_CLIENT, Op.DATA),
    ):
        for given_op in (int(op), True, "5", [5], None, 0, 99):
            with pytest.raises(BadInput, match=r"lane op .* does not come from a"):
                direction.read(given_op, [], memoryview(b""))  # type: ignore[attr-defined]


@pytest.mark.parametrize("made", [Data, Answer])
@pytest.mark.parametrize(
    ("ids", "sizes"), [([1], [1, 1]), ([1], [3]), ([1], [-2]), ([1, 2], [1, -2]), ([1, 1], [2**63 - 1, 3])]
)
def test_sizes_that_do_not_fit_the_payloads_are_refused(made: Any, ids: list[int], sizes: list[int]) -> None:
    head = (1, 1) if made is Data else (1,)
    (_, *fields), blob = fields_of(frame(made(*head, make_column(ids), make_column(sizes)), b"ab"))
    with pytest.raises(BadInput, match="2 bytes: they must fit each other"):
        made.decode(fields, blob)


def test_payloads_go_into_frames_that_end_with_the_one_that_fills_them() -> None:
    mib = 1 << 20
    found = list(in_parts([mib, 20 * mib, -1, 15 * mib, mib, 3]))
    assert [(part.start, part.stop) for part in found] == [(0, 2), (2, 5), (5, 6)]
    assert list(in_parts([])) == []


def test_a_column_is_little_endian_bytes() -> None:
    assert make_column([1, -1]).tobytes() == b"\x01" + bytes(7) + b"\xff" * 8
    assert read_column(make_column([2**62, -5]).tobytes()).tolist() == [2**62, -5]
    with pytest.raises(BadInput, match="cannot be read as int64"):
        read_column(b"1234567")
