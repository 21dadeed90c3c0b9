from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import open_run, read_trace
from workloads.traces import text_lines
from workloads.traces.function_mapping import model_of_function
from workloads.traces.importers import import_trace

S = 1_000_000_000


def imported(tmp_path: Path, format_name: str, lines: list[str] | Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Facts, and (model, arrival_ns, bytes) of each request."""
    path = lines
    if isinstance(lines, list):
        path = tmp_path / "given"
        path.write_text("\n".join(lines) + "\n")
    facts = import_trace(format_name, path, tmp_path / "run", **options)  # type: ignore[arg-type]
    return facts, read_trace(tmp_path / "run").select("model", "arrival_ns", "bytes").rows()


FUNCTIONS_2021 = [
    "app,func,end_timestamp,duration",
    "a,f,10.5,0.25",
    "a,g,11.0,10.75",
    "b,f,11.000000001,8.9e-05",
]


def test_functions_of_2021_arrive_at_end_less_duration(tmp_path: Path) -> None:
    facts, rows = imported(tmp_path, "azure-functions-2021", FUNCTIONS_2021)
    assert rows == [("a/g", 0, 0), ("a/f", 10 * S, 0), ("b/f", 10_749_911_001, 0)]
    assert (facts["requests"], facts["models"], facts["bad_rows"]) == (3, 3, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,f,x,1", "line 5: end_timestamp 'x' is not a number of seconds"),
        ("a,f,1,-1", "line 5: duration '-1' is not a number of seconds of at least 0"),
        (",f,1,1", "line 5: app or func is empty"),
        ("a,f,1", "line 5: 3 fields where the header has 4"),
    ],
)
def test_bad_rows_of_2021_are_counted_shown_and_refused_under_strict(tmp_path: Path, row: str, message: str) -> None:
    shown: list[str] = []
    facts, _ = imported(tmp_path, "azure-functions-2021", [*FUNCTIONS_2021, row], on_bad=shown.extend)
    assert (facts["requests"], facts["bad_rows"], shown) == (3, 1, [message])
    assert open_run(tmp_path / "run").info["bad_rows"] == 1
    with pytest.raises(BadInput, match=f"{message}; mend it"):
        import_trace("azure-functions-2021", tmp_path / "given", tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_functions_of_2019_are_drawn_within_their_minutes(tmp_path: Path) -> None:
    minutes = ",".join(str(n) for n in range(1, 1441))
    counts = ["0"] * 1440
    lines = [f"HashOwner,HashApp,HashFunction,Trigger,{minutes}"]
    lines += [f"o,a,f,http,{','.join([*counts[:-1], '500'])}", f"o,a,g,timer,{','.join(['0', '300', *counts[2:]])}"]
    facts, rows = imported(tmp_path, "azure-functions-2019", lines)
    of_g = np.array([arrival for model, arrival, _ in rows if model == "a/g"])
    of_f = np.array([arrival for model, arrival, _ in rows if model == "a/f"])
    assert (len(of_g), len(of_f), facts["models"]) == (300, 500, 2)
    assert 60 * S <= of_g.min() < 62 * S < 118 * S < of_g.max() < 120 * S
    assert 1439 * 60 * S <= of_f.min() < of_f.max() < 1440 * 60 * S


def test_a_function_of_2019_with_a_bad_count_is_a_bad_row(tmp_path: Path) -> None:
    lines = ["HashOwner,HashApp,HashFunction,Trigger,1,2", "o,a,f,http,1,2", "o,a,g,http,1,-2", "o,a,h,http,,2"]
    shown: list[str] = []
    facts, _ = imported(tmp_path, "azure-functions-2019", lines, on_bad=shown.extend)
    assert (facts["requests"], facts["bad_rows"]) == (3, 2)
    assert shown == [f"line {n}: a count is not a whole number of at least 0" for n in (3, 4)]


def test_mooncake_times_are_ms(tmp_path: Path) -> None:
    lines = ['{"timestamp": 27, "input_length": 6, "hash_ids": [1, 2]}', '{"timestamp": 30.5}', "{", '{"time": 3}']
    shown: list[str] = []
    facts, rows = imported(tmp_path, "mooncake", lines, on_bad=shown.extend)
    assert rows == [("mooncake", 0, 0), ("mooncake", 3_500_000, 0)]
    assert facts["bad_rows"] == 2
    assert shown == [f"line {n}: it has no timestamp, or is no JSON object" for n in (3, 4)]


def test_rates_are_drawn_within_their_seconds(tmp_path: Path) -> None:
    _, rows = imported(tmp_path, "rate", ["0", "3", "many", "2"])
    seconds = [arrival // S for _, arrival, _ in rows]
    assert seconds == [1, 1, 1, 3, 3]
    assert len({arrival for _, arrival, _ in rows}) == 5


def test_json_lines_are_read_by_named_keys_and_paths(tmp_path: Path) -> None:
    lines = ['{"at": "2024-05-12T00:00:01Z", "m": {"name": "x"}, "n": 7}', '{"at": "2024-05-12 00:00:00.5", "n": 1}']
    lines += ['{"at": "2024-05-12 00:00:03", "m": {"name": "y"}, "n": -1}']
    options = {"time": "at", "unit": "iso", "model": "$.m.name", "bytes_": "n"}
    facts, rows = imported(tmp_path, "jsonl", lines, **options)
    assert (rows, facts["bad_rows"]) == ([("x", 0, 7)], 2)


def test_csv_is_read_by_named_columns_also_in_quotes(tmp_path: Path) -> None:
    lines = ["model,at,size", '"a, b",1700000000.123456789,10', "c,1700000000.000000001,20", "d,,1", ",1,1", "e,1,2.5"]
    shown: list[str] = []
    options = {"time": "at", "model": "model", "bytes_": "size", "on_bad": shown.extend}
    _, rows = imported(tmp_path, "csv", lines, **options)
    assert rows == [("c", 0, 20), ("a, b", 123_456_788, 10)]
    assert shown == [
        "line 4: at '' is not a number of s",
        "line 5: model is empty",
        "line 6: size '2.5' is not a whole number of at least 0",
    ]


@pytest.mark.parametrize(("unit", "ns"), [("s", S), ("ms", 10**6), ("us", 1000), ("ns", 1)])
def test_times_are_read_in_their_unit(tmp_path: Path, unit: str, ns: int) -> None:
    _, rows = imported(tmp_path, "csv", ["timestamp", "5", "12"], unit=unit)
    assert rows[1] == ("csv", 7 * ns, 0)


def test_parquet_is_read_by_named_columns(tmp_path: Path) -> None:
    frame = pl.DataFrame({"at": [3, None, 1, 2], "who": ["a", "b", "a", None], "size": [5, 6, 7, 8]})
    for at in (pl.col("at"), pl.from_epoch("at", "s")):
        frame.with_columns(at.alias("at")).write_parquet(tmp_path / "t.parquet")
        shown: list[str] = []
        facts = import_trace(
            "parquet",
            tmp_path / "t.parquet",
            tmp_path / str(at)[:5],
            time="at",
            model="who",
            bytes_="size",
            on_bad=shown.extend,
        )
        rows = read_trace(tmp_path / str(at)[:5]).select("model", "arrival_ns", "bytes").rows()
        assert (rows, facts["bad_rows"]) == ([("a", 0, 7), ("a", 2 * S, 5)], 2)
        assert [text[:6] for text in shown] == ["line 2", "line 4"]


@pytest.mark.parametrize("format_name", ["azure-functions-2021", "rate", "csv"])
def test_the_same_file_and_seed_give_the_same_bytes(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "given"
    times = [5, 3, 9, 3, 7] * 20
    head, row = {
        "azure-functions-2021": ("app,func,end_timestamp,duration", "a,f{0},{0},1"),
        "rate": ("4", "{0}"),
        "csv": ("timestamp", "{0}"),
    }[format_name]
    path.write_text("\n".join([head, *(row.format(t) for t in times)]))
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        import_trace(format_name, path, tmp_path / name, models=3, seed=seed)
    one, two, other = ((tmp_path / n / "requests-000001.parquet").read_bytes() for n in ("one", "two", "other"))
    assert one == two
    assert (one == other) == (format_name == "azure-functions-2021")


def test_a_file_in_many_blocks_out_of_order_is_sorted_with_its_line_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = np.random.default_rng(3).permutation(3000)
    lines = ["timestamp", "", *(str(t) for t in times), "bad"]
    whole, _ = imported(tmp_path / "a", "csv", write(tmp_path / "a", lines))
    blocks = text_lines.line_blocks
    monkeypatch.setattr(text_lines, "line_blocks", lambda path, on: blocks(path, on, block_bytes=100))
    shown: list[str] = []
    facts, rows = imported(tmp_path / "b", "csv", write(tmp_path / "b", lines), on_bad=shown.extend)
    assert facts == whole
    assert [arrival for _, arrival, _ in rows] == [t * S for t in range(3000)]
    assert shown == ["line 3003: timestamp 'bad' is not a number of s"]


def write(folder: Path, lines: list[str]) -> Path:
    folder.mkdir()
    (folder / "given").write_text("\r\n".join(lines))
    return folder / "given"


def test_a_window_is_cut_and_its_start_is_time_0(tmp_path: Path) -> None:
    lines = ["timestamp", *(str(t) for t in (100, 101, 103, 105, 109))]
    _, rows = imported(tmp_path, "csv", lines, start_ns=2 * S, end_ns=9 * S)
    assert [arrival for _, arrival, _ in rows] == [1 * S, 3 * S]


def test_a_window_without_requests_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no request from 2 to 3 ns"):
        imported(tmp_path, "csv", ["timestamp", "1"], start_ns=2, end_ns=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rule", "models"),
    [
        # Functions 0 to 4 have 1, 5, 2, 9 and 5 requests; by requests their order is 3, 1, 4, 2, 0.
        ("popularity", [0, 1, 1, 0, 0]),
        ("round-robin", [0, 1, 0, 1, 0]),
        ("stripe", [0, 0, 0, 1, 1]),
    ],
)
def test_functions_are_dealt_to_models_by_the_rule(rule: str, models: list[int]) -> None:
    assert model_of_function(rule, np.array([1, 5, 2, 9, 5]), 2).tolist() == models


def test_the_most_popular_function_goes_to_model_0(tmp_path: Path) -> None:
    lines = ["app,func,end_timestamp,duration", "a,f,1,0", *["a,g,2,0"] * 3, *["a,h,3,0"] * 2]
    _, rows = imported(tmp_path, "azure-functions-2021", lines, models=2, rule="popularity")
    assert [model for model, _, _ in rows] == ["model-0", *["model-0"] * 3, *["model-1"] * 2]


def test_without_functions_models_are_drawn_by_popularity(tmp_path: Path) -> None:
    _, rows = imported(tmp_path, "rate", ["4000"], models=3, popularity="zipf")
    counts = np.unique([model for model, _, _ in rows], return_counts=True)[1]
    assert counts.tolist() == pytest.approx([2096, 1123, 780], abs=120)  # weights 1, 0.536, 0.372


@pytest.mark.parametrize(
    ("format_name", "options", "message"),
    [
        ("rate", {"time": "x"}, "'rate' has its own columns: leave time out"),
        ("csv", {"unit": "min"}, "unit 'min' is unknown: use one of s, ms, us, ns, iso"),
        ("csv", {"time": "at"}, "no column at: its first line is 'timestamp'"),
        ("csv", {"rule": "stripe"}, "mapping 'stripe' cannot be used: it needs a number of models"),
        ("csv", {"rule": "stripe", "models": 2}, "the trace has no functions"),
        ("csv", {"models": 0}, "at least 1"),
        ("csv", {"popularity": "flat"}, "popularity 'flat' is unknown"),
        ("csv", {"start_ns": 5, "end_ns": 5}, "window from 5 to 5 ns is empty"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    tmp_path: Path, format_name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        imported(tmp_path, format_name, ["timestamp", "1"], **options)
