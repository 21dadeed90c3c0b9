from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest

from workloads.data import AZURE_LLM_FILE, bundled_azure_llm
from workloads.data.build import build
from workloads.traces.importers import azure_llm
from workloads.traces.info import info

PUBLISHED = Path(__file__).parents[4] / "shared/traces/azure_llm_2023_code.csv"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published CSV is not beside the checkout")


def test_the_bundled_trace_is_the_whole_published_one() -> None:
    assert info(bundled_azure_llm()) == {
        "requests": 8819,
        "span_s": 3435.948056,
        "models": 1,
        "mean_hz": pytest.approx(2.5667, abs=1e-4),
        "peak_hz": 67.0,
        "bad_rows": 0,
    }


def test_the_bundled_trace_begins_and_ends_as_published() -> None:
    frame = bundled_azure_llm()
    assert frame.row(1) == ("azure-llm", 52_000_000, 0, 3180, 8)
    assert frame.row(-1) == ("azure-llm", 3_435_948_056_000, 0, 549, 173)


def test_the_bundled_trace_is_small_and_has_its_licence_beside_it() -> None:
    folder = files("workloads.data")
    assert len((folder / AZURE_LLM_FILE).read_bytes()) < 200_000
    licence = (folder / "LICENSE-azure-llm.md").read_text(encoding="utf-8")
    assert "CC-BY-4.0" in licence
    assert "Splitwise" in licence


@needs_published
def test_importing_the_published_csv_gives_the_bundled_trace() -> None:
    imported = azure_llm(PUBLISHED, strict=True)
    assert imported.bad_rows == 0
    assert imported.frame.equals(bundled_azure_llm())


@needs_published
def test_building_from_the_published_csv_gives_the_bundled_rows(tmp_path: Path) -> None:
    assert build(PUBLISHED, tmp_path) == tmp_path / AZURE_LLM_FILE
    columns = ["arrival_ns", "context_tokens", "generated_tokens"]
    assert pl.read_parquet(tmp_path / AZURE_LLM_FILE).equals(bundled_azure_llm().select(columns))


def test_importing_workloads_loads_no_polars() -> None:
    subprocess.run([sys.executable, "-c", "import workloads, sys; assert 'polars' not in sys.modules"], check=True)
