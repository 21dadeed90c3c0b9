from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from symphony_dask.trace import SCHEMA_VERSION, SCHEMAS
from symphony_dask.trace import folder as run_folder
from symphony_dask.trace.columns import to_table

REQUESTS, PART, BATCH, GPUS, MODELS = 50_000_000, 1_000_000, 10, 200, 20
MS = 1_000_000

_REPORT = """
import resource, sys
from symphony_dask.trace import open_run
from autoscale.providers.prices import prices
from workloads.analysis.report import report
from workloads.analysis.report_page import page
found = report(open_run(sys.argv[1]), prices())
text = page([found])
late = sum(row["requests"] for row in found["causes"]["late"])
assert (found["summary"]["requests"], found["summary"]["late"]) == (int(sys.argv[2]), late), found["summary"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, len(text))
"""


def write_run(folder: Path) -> None:
    """2 million requests/s in batches of ten, of which some run long, and half of every fiftieth batch is dropped."""
    run_folder.create(folder)
    names = [f"m{i}" for i in range(MODELS)]
    rng = np.random.default_rng(0)
    firsts = slice(None, None, BATCH)
    for part in range(REQUESTS // PART):
        i = np.arange(part * PART, (part + 1) * PART)
        batch = i // BATCH
        arrival = i * 500
        start = batch * 500 * BATCH + 15 * MS + rng.integers(0, MS, PART // BATCH).repeat(BATCH)
        end = start + 7 * MS + rng.integers(0, 2_600_000, PART // BATCH).repeat(BATCH)
        drop = (batch % 50 == 7) & (i % BATCH < BATCH // 2)
        late = end + 20_000 > arrival + 25 * MS
        requests = {
            "id": i, "client": np.zeros(PART, np.int32), "model": batch % MODELS, "arrival_ns": arrival,
            "deadline_ns": arrival + 25 * MS, "dispatch_ns": np.where(drop, -1, start), "bytes": np.zeros(PART, int),
            "start_ns": np.where(drop, -1, start), "end_ns": np.where(drop, -1, end),
            "reply_ns": np.where(drop, arrival + 19 * MS, end + 20_000), "batch": np.where(drop, -1, batch),
            "outcome": np.where(drop, 2, late).astype(np.int8),
            "gpu": np.where(drop, -1, batch % GPUS).astype(np.int32),
        }  # fmt: skip
        batches = {
            "batch": batch, "model": batch % MODELS, "gpu": (batch % GPUS).astype(np.int32), "dispatch_ns": start,
            "size": np.full(PART, BATCH, np.int32),
            "window_open_ns": start - 100_000, "window_close_ns": start + 700_000,
            "planned_start_ns": start, "planned_end_ns": start + 8 * MS, "start_ns": start, "end_ns": end,
            "outcome": np.zeros(PART, np.int8),
        }  # fmt: skip
        run_folder.write_part(folder, "requests", part + 1, to_table("requests", [requests], names))
        of_batches = {name: values[firsts] for name, values in batches.items()}
        run_folder.write_part(folder, "batches", part + 1, to_table("batches", [of_batches], names))
    gpu = {"time_ns": 0, "event": "ready", "gpu_class": "T4"}
    gpus = [{**gpu, "gpu": g, "rank": g, "worker": None, "host": None} for g in range(GPUS)]
    run_folder.write_part(folder, "gpus", 1, pa.Table.from_pylist(gpus, schema=SCHEMAS["gpus"]))
    profile = {"alpha_ms": 0.5, "beta_ms": 3.0, "max_batch": 64, "table": []}
    models = [{"name": name, "slo_ns": 25 * MS, "profiles": {"T4": profile}} for name in names]
    said = {"label": "simulated", "clock": "virtual", "policy": "synthetic", "closed": True, "lost_rows": 0}
    run_folder.write_info(folder, {"schema_version": SCHEMA_VERSION, "started_at": None, "models": models, **said})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_50_million_requests_is_reported_within_4_gib(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    command = [sys.executable, "-c", _REPORT, str(tmp_path / "run"), str(REQUESTS)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    peak_bytes, page_bytes = map(int, told.stdout.split())
    assert peak_bytes < 4 * 2**30
    assert page_bytes < 1_000_000
