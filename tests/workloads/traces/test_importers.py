from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from symphony_dask.errors import BadInput
from symphony_dask.trace import read_trace, write_trace
from workloads.traces.importers import TRACE_COLUMNS, azure_llm, import_trace
from workloads.traces.info import info

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = [
    "2023-11-16 18:17:03.9799600,4808,10",
    "2023-11-16 18:17:04.0319601,3180,8",
    "2023-11-16 18:17:05,110,27",
]


def csv(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "trace.csv"
    path.write_bytes(end.join(lines).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_requests_are_read_to_the_100_ns_with_either_line_end(tmp_path: Path, end: str) -> None:
    imported = azure_llm(csv(tmp_path, [HEADER, *GOOD], end))
    assert imported.bad_rows == 0
    assert imported.bad_examples == ()
    assert imported.frame.schema == {
        "model": pl.String,
        "arrival_ns": pl.Int64,
        "bytes": pl.Int64,
        "context_tokens": pl.Int32,
        "generated_tokens": pl.Int32,
    }
    assert imported.frame.rows() == [
        ("azure-llm", 0, 0, 4808, 10),
        ("azure-llm", 52_000_100, 0, 3180, 8),
        ("azure-llm", 1_020_040_000, 0, 110, 27),
    ]


def test_rows_are_put_in_order_of_arrival(tmp_path: Path) -> None:
    frame = azure_llm(csv(tmp_path, [HEADER, GOOD[2], GOOD[0]])).frame
    assert frame["context_tokens"].to_list() == [4808, 110]
    assert frame["arrival_ns"].to_list() == [0, 1_020_040_000]


def test_columns_are_found_by_name_and_utc_offsets_are_read(tmp_path: Path) -> None:
    lines = ["ContextTokens,Zone,GeneratedTokens,TIMESTAMP", "5,x,6,2024-05-12 00:00:00.001163+00:00"]
    assert azure_llm(csv(tmp_path, lines)).frame.row(0)[3:] == (5, 6)


def test_bad_rows_are_left_out_counted_and_shown_with_their_lines(tmp_path: Path) -> None:
    lines = [HEADER, GOOD[0], "yesterday,1,2", "", GOOD[1], "2023-11-16 18:17:09,-3,4", "2023-11-16 18:17:09,3", ""]
    imported = azure_llm(csv(tmp_path, lines))
    assert imported.frame.height == 2
    assert imported.bad_rows == 3
    assert imported.bad_examples == (
        "line 3: TIMESTAMP 'yesterday' is not a time such as 2023-11-16 18:17:03.9799600",
        "line 6: ContextTokens '-3' is not a whole number of at least 0",
        "line 7: 2 fields where the header has 3",
    )


@pytest.mark.parametrize("tokens", ["1,many", "1,2.5", "1,", "1,99999999999", "1,2,3", '1,"2'])
def test_a_row_with_an_unreadable_token_count_is_bad(tmp_path: Path, tokens: str) -> None:
    imported = azure_llm(csv(tmp_path, [HEADER, f"2023-11-16 18:17:09,{tokens}", GOOD[0]]))
    assert (imported.frame.height, imported.bad_rows) == (1, 1)
    assert imported.bad_examples[0].startswith("line 2: ")


def test_bytes_that_are_no_text_make_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\n".join([HEADER.encode(), b"\xff\xfe\x00,1,2", GOOD[0].encode()]))
    assert azure_llm(path).bad_rows == 1


def test_only_the_first_five_bad_rows_are_kept(tmp_path: Path) -> None:
    imported = azure_llm(csv(tmp_path, [HEADER, *GOOD, *["x,1,2"] * 7]))
    assert imported.bad_rows == 7
    assert [example.split(":")[0] for example in imported.bad_examples] == [f"line {n}" for n in range(5, 10)]


def test_strict_raises_on_the_first_bad_row(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line 3: GeneratedTokens 'many'"):
        azure_llm(csv(tmp_path, [HEADER, GOOD[0], "2023-11-16 18:17:09,1,many", "x,1,2"]), strict=True)


def test_rows_are_spread_over_named_models_by_their_shares_and_the_seed(tmp_path: Path) -> None:
    path = csv(tmp_path, [HEADER, *GOOD * 1000])
    frame = azure_llm(path, models=["chat", "code"], shares=[0.9, 0.1], seed=1).frame
    assert frame["model"].value_counts(sort=True)["model"].to_list() == ["chat", "code"]
    assert (frame["model"] == "chat").sum() == pytest.approx(2700, abs=70)
    assert frame.equals(azure_llm(path, models=["chat", "code"], shares=[0.9, 0.1], seed=1).frame)
    assert not frame.equals(azure_llm(path, models=["chat", "code"], shares=[0.9, 0.1], seed=2).frame)
    assert (azure_llm(path, models=["chat", "code"]).frame["model"] == "chat").sum() == pytest.approx(1500, abs=120)


def test_models_and_shares_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 models but 1 shares"):
        azure_llm(csv(tmp_path, [HEADER, *GOOD]), models=["a", "b"], shares=[1.0])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "is empty"),
        (["", ""], "is empty"),
        (["a,b,c"], "no column TIMESTAMP, ContextTokens, GeneratedTokens: its first line is 'a,b,c'"),
        ([HEADER], "it has no rows"),
        ([HEADER, "x,1,2"], "all 1 rows are bad, the first at line 2"),
    ],
)
def test_a_file_without_requests_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        azure_llm(csv(tmp_path, lines))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        azure_llm(tmp_path / "nothing.csv")


def test_formats_are_looked_up_by_name(tmp_path: Path) -> None:
    assert import_trace("azure-llm", csv(tmp_path, [HEADER, *GOOD]), tmp_path / "run", strict=True)["requests"] == 3
    with pytest.raises(BadInput, match="'azure-lm' is unknown: use one of azure-functions-2019, "):
        import_trace("azure-lm", tmp_path, tmp_path / "run")


def test_info_counts_requests_rates_and_models() -> None:
    arrival_ns = [1_000_000_005, 1_000_000_006, 2_000_000_004, 3_000_000_005]
    frame = pl.DataFrame({"model": ["a", "b", "a", "a"], "arrival_ns": arrival_ns})
    assert info(frame, bad_rows=2) == {
        "requests": 4,
        "span_s": 2.0,
        "models": 2,
        "mean_hz": 2.0,
        "peak_hz": 3.0,
        "bad_rows": 2,
    }


def test_info_of_a_single_request_has_no_rate() -> None:
    facts = info(pl.DataFrame({"model": ["a"], "arrival_ns": [7]}))
    assert (facts["span_s"], facts["mean_hz"], facts["peak_hz"]) == (0.0, 0.0, 1.0)


def test_info_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="no requests"):
        info(pl.DataFrame({"model": [], "arrival_ns": []}))


def test_an_imported_trace_can_be_written_as_a_run_and_read_again(tmp_path: Path) -> None:
    frame = azure_llm(csv(tmp_path, [HEADER, *GOOD])).frame.select(TRACE_COLUMNS)
    write_trace(tmp_path / "run", frame, {"source": "azure-llm"})
    assert read_trace(tmp_path / "run").select(TRACE_COLUMNS).equals(frame)


def test_info_reads_numbers_that_json_can_write() -> None:
    facts = info(pl.DataFrame({"model": ["a"], "arrival_ns": np.array([7])}))
    assert {type(value) for value in facts.values()} == {int, float}
