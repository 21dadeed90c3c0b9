"""Files as others write them, and files that are none: what is bad is counted, and errors are one line of our own."""

from __future__ import annotations

import datetime
import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import read_trace
from workloads.traces import text_lines
from workloads.traces.importers import import_trace

S = 1_000_000_000


def imported(
    folder: Path, format_name: str, data: bytes, **options: Any
) -> tuple[int, int, list[tuple[str, int]], list[str]]:
    """Requests, bad rows, (model, arrival_ns) of each request, and the bad rows that were shown."""
    (folder / "given").write_bytes(data)
    shown: list[str] = []
    facts = import_trace(format_name, folder / "given", folder / "run", on_bad=shown.extend, **options)
    return (
        facts["requests"],
        facts["bad_rows"],
        read_trace(folder / "run").select("model", "arrival_ns").rows(),
        shown,
    )


LINES = {
    "rate": b"1\n0\n1\n",
    "jsonl": b'{"timestamp": 1}\n{"timestamp": 2}\n',
    "mooncake": b'{"timestamp": 1}\n{"timestamp": 2}\n',
    "csv": b"timestamp,x\n1,0\n2,0\n",
    "azure-llm": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n2023-11-16 18:17:04,1,1\n",
    "azure-functions-2021": b"app,func,end_timestamp,duration\na,f,1,0\na,f,2,0\n",
    "azure-functions-2019": b"HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,http,1,1\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("format_name", LINES)
def test_a_byte_order_mark_utf_16_and_any_line_end_lose_no_request(
    tmp_path: Path, format_name: str, end: str, encoding: str
) -> None:
    text = LINES[format_name].decode().replace("\n", end)
    requests, bad, *_ = imported(tmp_path, format_name, text.encode(encoding))
    assert (requests, bad) == (2, 0)


def test_a_line_end_of_two_bytes_on_the_edge_of_a_block_is_one(tmp_path: Path) -> None:
    (tmp_path / "given").write_bytes(b"12345\r\n67\r\n8")
    blocks = text_lines.line_blocks(tmp_path / "given", block_bytes=6)
    assert [row for block in blocks for row in block.select("line", "text").rows()] == [
        (1, "12345"),
        (2, "67"),
        (3, "8"),
    ]


@pytest.mark.parametrize("format_name", LINES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty|has no request"),
        (b"\n\r\n  \n", "is empty|has no request"),
        (gzip.compress(b"1\n", mtime=0), r"is compressed by gzip: unpack it first \(gunzip\)"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"PAR1....", "is a Parquet file: import it by the format parquet"),
        (b"\x00" * 100, "NUL bytes"),
        (b"\xff\xff\xff\n", "byte 0xff at 0 is no UTF-8"),
        (b"\x93NUMPY\x01\n", "byte 0x93 at 0 is no UTF-8"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, format_name: str, data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        imported(tmp_path, format_name, data)
    text = str(raised.value)
    assert (len(text.splitlines()), text.isprintable(), len(text) < 600) == (1, True, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format_name", [name for name in LINES if name not in ("rate", "jsonl", "mooncake")])
def test_a_header_alone_has_no_request(tmp_path: Path, format_name: str) -> None:
    with pytest.raises(BadInput, match="has no request: it has no rows"):
        imported(tmp_path, format_name, LINES[format_name].split(b"\n")[0])


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_lines, "MOST_LINE_BYTES", 1000)
    monkeypatch.setattr(text_lines._utf8, "__defaults__", None)
    (tmp_path / "given").write_bytes(b"1\n" + b"7" * 10_000)
    with pytest.raises(BadInput, match=r"line 2 of .* is longer than 0 MiB: give a text file of lines"):
        list(text_lines.line_blocks(tmp_path / "given", block_bytes=100))


def test_a_value_as_long_as_a_book_is_shown_by_its_beginning(tmp_path: Path) -> None:
    _, bad, _, shown = imported(tmp_path, "rate", b"1\n" + b"x" * 1_000_000)
    assert (bad, shown) == (1, [f"line 2: '{'x' * 80}...' is not a whole number of at least 0"])


def test_a_header_may_have_commas_in_quotes(tmp_path: Path) -> None:
    assert imported(tmp_path, "csv", b'"a, b",timestamp\n"x, y",1\nz,2\n')[:2] == (2, 0)
    (tmp_path / "run").rename(tmp_path / "first")
    assert imported(tmp_path, "csv", b'timestamp, "a, b"\n1, "x, y"\n', time="timestamp", model="a, b")[2] == [
        ("x, y", 0)
    ]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"timestamp,timestamp\n1,2\n", {}, "has the column timestamp 2 times"),
        (b"time,size\n1,2\n", {}, "has no column timestamp: its first line is 'time,size'"),
        (b"t\n1\n", {"time": "it's \x1b[31m"}, "has no column"),
        (b"t\n1\n", {"time": "\udce9"}, "is no Unicode text"),
    ],
)
def test_a_header_that_does_not_fit_is_shown(
    tmp_path: Path, data: bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        imported(tmp_path, "csv", data, **options)


@pytest.mark.parametrize(
    "value",
    [
        '"1,000"',
        "inf",
        "-inf",
        "nan",
        "1e400",
        "99999999999999999999",
        "0x10",
        "1_000",
        "1.5.5",
        "",
        "9223372036",
        "--1",
    ],
)
def test_a_number_that_is_none_or_has_no_ns_is_a_bad_row(tmp_path: Path, value: str) -> None:
    _, bad, rows, shown = imported(tmp_path, "csv", f"timestamp,x\n{value},0\n5,0\n".encode())
    assert (bad, rows) == (1, [("csv", 0)])
    assert shown == [f"line 2: timestamp '{value.strip(chr(34))}' is not a number of s"]


def test_times_before_zero_far_apart_and_out_of_order_are_read(tmp_path: Path) -> None:
    data = b"timestamp\n4600000000\n-4600000000\n0\n"
    assert [at for _, at in imported(tmp_path, "csv", data)[2]] == [0, 4_600_000_000 * S, 9_200_000_000 * S]


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2023-11-16 18:17:04", 1 * S),
        ("2023-11-16T18:17:04.5Z", 1_500_000_000),
        ("2023-11-16 20:17:04.000000001+02:00", 1_000_000_001),
        ("2023-11-16T12:47:04-0530", 1 * S),
        ("9999-12-31 00:00:00", None),
        ("2300-01-01 00:00:00", None),
        ("2023-13-01 00:00:00", None),
        ("2023-11-16", None),
        ("1700158624", None),
    ],
)
def test_times_are_read_with_their_zone_and_within_the_years_that_ns_have(
    tmp_path: Path, text: str, ns: int | None
) -> None:
    data = f"timestamp\n2023-11-16 18:17:03\n{text}\n".encode()
    _, bad, rows, _ = imported(tmp_path, "csv", data, unit="iso")
    assert (bad, [at for _, at in rows]) == ((0, [0, ns]) if ns is not None else (1, [0]))


def test_bytes_that_are_no_text_make_their_row_bad_and_no_name(tmp_path: Path) -> None:
    data = b"timestamp,m\n1,caf\xc3\xa9\n2,caf\xe9\n3,a\x00b\n4,a\x1b[31m\n5," + b"n" * 300 + b"\n6,\xef\xbf\xbd\n"
    requests, bad, rows, shown = imported(tmp_path, "csv", data, model="m")
    assert (requests, bad, [model for model, _ in rows]) == (2, 4, ["café", "\ufffd"])
    assert shown == [
        "line 3: byte 0xe9 at 5 is no UTF-8: save it as UTF-8",
        "line 4: it has NUL bytes: is it text, in UTF-8?",
        "line 5: m 'a\\x1b[31m' is no name of a model: printable, at most 256 characters",
        f"line 6: m '{'n' * 80}...' is no name of a model: printable, at most 256 characters",
    ]


def test_json_that_is_odd_is_a_bad_row(tmp_path: Path) -> None:
    lines = [
        '{"timestamp": 1, "m": "a"}',
        '{"timestamp": 2, "m": "\\ud800"}',
        '{"timestamp": 3, "m": "x\\ny"}',
        '{"timestamp": {"s": 4}, "m": "a"}',
        '{"timestamp": NaN, "m": "a"}',
        '{"timestamp": "5", "m": "it\'s \\"b\\""}',
        '{"timestamp": 6, "m": null}',
        "[1, 2]",
        '{"timestamp": 7, "m": "a"}{"timestamp": 8, "m": "a"}',
    ]
    requests, bad, rows, shown = imported(tmp_path, "jsonl", "\n".join(lines).encode(), model="m")
    assert (requests, bad) == (2, 7)
    assert rows == [("a", 0), ('it\'s "b"', 4 * S)]
    assert shown[1] == "line 3: m 'x\\ny' is no name of a model: printable, at most 256 characters"


@pytest.mark.parametrize("key", ["it's", 'q"q', "a.b", "a b", "é", "a]b", "*", "{}"])
def test_keys_of_json_may_have_quotes(tmp_path: Path, key: str) -> None:
    import json

    data = "\n".join(json.dumps({key: second}) for second in (1, 2)).encode()
    assert imported(tmp_path, "jsonl", data, time=key)[:2] == (2, 0)


@pytest.mark.parametrize(
    ("name", "message"), [("$[", "'.*' is no JSON path"), ("a\\b", "has a backslash"), ("\ud800", "is no Unicode text")]
)
def test_a_key_that_cannot_be_named_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        imported(tmp_path, "jsonl", b'{"timestamp": 1}', time=name)


DATE = datetime.date(2024, 1, 1)
NOON = datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (pa.array([1, 2], pa.uint64()), "s"),
        (pa.array([1.5, 2.5]), "s"),
        (pa.array([Decimal("1.5"), Decimal("2.5")]), "s"),
        (pa.array(["1.5", "2.5"], pa.large_string()), "s"),
        (pa.array(["2024-01-01 00:00:00", "2024-01-01T00:00:01Z"]).dictionary_encode(), "iso"),
        (pa.array([NOON, NOON + datetime.timedelta(seconds=1)], pa.timestamp("ms", "Europe/Berlin")), "s"),
        (pa.array([NOON, NOON + datetime.timedelta(seconds=1)], pa.timestamp("ns")), "s"),
        (pa.array([1000, 2000], pa.duration("ms")), "s"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_times_of_parquet_are_read_by_their_type(tmp_path: Path, column: Any, unit: str) -> None:
    pq.write_table(pa.table({"timestamp": column}), tmp_path / "t.parquet")
    facts = import_trace("parquet", tmp_path / "t.parquet", tmp_path / "run", unit=unit)
    assert (facts["requests"], facts["bad_rows"], facts["span_s"]) == (2, 0, 1.0)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([DATE, DATE]),
        pa.array([datetime.time(1), datetime.time(2)]),
        pa.array([True, False]),
        pa.array([b"1", b"2"]),
        pa.array([[1], [2]], pa.list_(pa.field("element", pa.int64()))),
        pa.array([{"s": 1}, {"s": 2}]),
        pa.nulls(2),
    ],
    ids=lambda column: str(column.type),
)
def test_types_of_parquet_that_are_no_times_are_named(tmp_path: Path, column: Any) -> None:
    pq.write_table(pa.table({"timestamp": column}), tmp_path / "t.parquet")
    with pytest.raises(
        BadInput, match=f"column timestamp of .* is '{column.type}'.*: it must be a number".replace("[", ".")
    ):
        import_trace("parquet", tmp_path / "t.parquet", tmp_path / "run")


def test_values_of_parquet_that_fit_nowhere_are_bad_rows(tmp_path: Path) -> None:
    far = datetime.datetime(9999, 1, 1)
    frames = {
        "far": pl.DataFrame({"timestamp": [datetime.datetime(2024, 1, 1), far, None]}),
        "wide": pl.DataFrame({"timestamp": pl.Series([1, 2**63, None], dtype=pl.UInt64)}),
        "float": pl.DataFrame({"timestamp": [1.0, float("inf"), float("nan")]}),
    }
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / name)
        facts = import_trace("parquet", tmp_path / name, tmp_path / f"{name}-run")
        assert (facts["requests"], facts["bad_rows"]) == (1, 2), name


def test_columns_of_parquet_that_are_twice_there_missing_or_of_no_use_are_named(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["timestamp", "timestamp"])
    pq.write_table(twice, tmp_path / "twice")
    pq.write_table(pa.table({"timestamp": [1], "m": [1.5], 'it\'s "x"': ["a"]}), tmp_path / "plain")
    for file, options, message in (
        ("twice", {}, "has 2 columns timestamp"),
        ("plain", {"time": "a.b"}, "has no column a.b"),
        ("plain", {"model": "m"}, "column m of .* is 'double': it must be text"),
    ):
        with pytest.raises(BadInput, match=message):
            import_trace("parquet", tmp_path / file, tmp_path / "run", **options)
    assert import_trace("parquet", tmp_path / "plain", tmp_path / "run", model='it\'s "x"')["requests"] == 1


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    pl.DataFrame({"timestamp": range(10_000)}).write_parquet(tmp_path / "t")
    data = bytearray((tmp_path / "t").read_bytes())
    data[100:3000] = b"\xff" * 2900
    (tmp_path / "t").write_bytes(data)
    for wrong in (tmp_path / "t", tmp_path):
        with pytest.raises(BadInput) as raised:
            import_trace("parquet", wrong, tmp_path / "run")
        assert len(str(raised.value).splitlines()) == 1
