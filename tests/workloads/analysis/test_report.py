from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from autoscale.providers.prices import prices
from symphony_dask.cli.main import symphony
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome, Recorder, open_run, write_trace
from tests.helpers.runs.simulated import MS, crowd, simulated
from workloads.analysis.report import OTHERS, names, report
from workloads.analysis.report_page import page
from workloads.analysis.svg import Chart, ticks

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two overloaded runs: "eager" with noise, so that requests are late too, and "deferred"."""
    folder = tmp_path_factory.mktemp("runs")
    crowd(folder / "eager", policy="eager", noise=0.3)
    crowd(folder / "deferred", policy="deferred")
    return {name: folder / name for name in ("eager", "deferred")}


def test_figures_are_those_of_the_runs_summary(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        run = open_run(folder)
        found, expected = report(run, prices())["summary"], run.summary().to_dict()
        for key, value in expected.items():
            if key not in ("p50_ms", "p99_ms"):
                assert found[key] == pytest.approx(value, rel=1e-9), key
        answered = run.requests.filter(pl.col("outcome").is_in(["ok", "late"])).collect()
        latency_ms = np.sort((answered["reply_ns"] - answered["arrival_ns"]).to_numpy()) / MS
        for key, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):  # between two requests, in bins 0.2 % wide
            at = share * (len(latency_ms) - 1)
            assert 0.997 * latency_ms[int(at)] <= found[key] <= 1.003 * latency_ms[int(np.ceil(at))], key


def test_parts_add_up_to_the_whole(runs: dict[str, Path]) -> None:
    found = report(open_run(runs["eager"]), prices())
    whole = found["summary"]
    rows = found["over_time"]["rows"]
    width = found["over_time"]["bucket_s"]
    assert round(sum(row["offered_hz"] for row in rows) * width) == whole["requests"]
    assert round(sum(row["goodput_hz"] for row in rows) * width) == whole["ok"]
    assert sum(row["requests"] for row in found["by_model"]) == whole["requests"]
    assert sum(size["requests"] for size in found["batch_sizes"]) == whole["ok"] + whole["late"]
    assert found["latency"][-1]["share"] == pytest.approx((whole["ok"] + whole["late"]) / whole["requests"])
    for outcome in ("late", "dropped"):
        assert sum(row["requests"] for row in found["causes"][outcome]) == whole[outcome] > 0
    use = found["window_use"]
    batches = sum(size["batches"] for size in found["batch_sizes"])
    assert use["before"] + use["within"] + use["after"] == batches
    assert sum(row["batches"] for row in use["histogram"]) == batches


def test_gpu_hours_cost_the_given_price(tmp_path: Path) -> None:
    run = simulated(tmp_path / "run", 0, 10, gpus=2, policy="deferred")  # two GPUs of class "gpu" for 24 ms
    cost = report(run, prices(["gpu=3600"]))["cost"]
    assert cost["gpu_hours"] == pytest.approx(2 * 0.024 / 3600)
    assert cost["usd"] == pytest.approx(2 * 0.024)
    assert cost["usd_per_million_good"] == pytest.approx(24_000)
    assert report(run, prices())["cost"]["usd"] is None


def test_a_gpu_class_is_rented_as_the_cheapest_instance_with_that_gpu() -> None:
    table = prices()
    assert table.find("g5.xlarge").gpu == "A10G"  # type: ignore[union-attr]
    assert table.find("NVIDIA T4").name == "g4dn.xlarge"  # type: ignore[union-attr]
    assert table.find("p4d.24xlarge").cost(9) == pytest.approx(2 * 21.957642)  # type: ignore[union-attr]
    assert table.find("emulated") is None
    assert prices(["g5.xlarge=2"]).find("g5.xlarge").usd_per_hour == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["g5.xlarge", "=1", "g5.xlarge=-1", "g5.xlarge=a", "g5.xlarge=nan"])
def test_a_price_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write CLASS=USD"):
        prices([text])


def test_a_chosen_part_of_the_timeline_is_cut_to_its_ends(runs: dict[str, Path]) -> None:
    part = report(open_run(runs["eager"]), prices(), from_ns=500 * MS, length_ns=100 * MS)["timeline"]
    assert (part["from_s"], part["to_s"]) == (0.5, pytest.approx(0.6))
    assert {b["gpu"] for b in part["batches"]} == {0, 1}
    assert min(b["start_s"] for b in part["batches"]) >= 0.5
    assert max(b["end_s"] for b in part["batches"]) <= 0.6 + 1e-9


def test_models_beyond_six_are_shown_together(tmp_path: Path) -> None:
    from symphony_dask.engine.latency_profile import LatencyProfile
    from workloads.simulation.record import record
    from workloads.simulation.result import SimModel
    from workloads.simulation.simulate import simulate

    models = [SimModel(f"m{i}", LatencyProfile(1, 5), 25 * MS) for i in range(8)]
    arrivals = np.arange(800) * MS
    record(simulate(models, 8, arrivals, (np.arange(800) % 8).astype(np.int32)), tmp_path / "run")
    found = report(open_run(tmp_path / "run"), prices())
    assert len(found["shown_models"]) == 7
    assert found["shown_models"][-1] == OTHERS
    assert len(found["by_model"]) == 8
    assert OTHERS in page([found])


def test_a_trace_that_was_not_served_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace", pl.DataFrame({"model": ["m"], "arrival_ns": [0]}))
    with pytest.raises(BadInput, match="simulate the trace first"):
        report(open_run(tmp_path / "trace"), prices())


def test_a_run_without_batches_that_goes_on_has_a_page(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", {"models": [], "policy": "eager"})
    code = recorder.add_model("m")
    row = {
        "id": 0,
        "client": 0,
        "model": code,
        "arrival_ns": 5,
        "deadline_ns": 9,
        "outcome": Outcome.REJECTED,
        "bytes": 0,
    }
    nothing = dict.fromkeys(("dispatch_ns", "start_ns", "end_ns", "batch", "gpu"), -1)
    recorder.record_requests({name: np.array([value]) for name, value in {**row, **nothing, "reply_ns": 6}.items()})
    recorder.close()
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "closed": False}))
    found = report(open_run(tmp_path / "run"), prices())
    assert (found["label"], found["summary"]["rejected"], found["summary"]["busy_gpus"]) == ("live", 1, 0)
    text = page([found])
    assert "the run goes on or was killed" in text
    assert "All figures are <b>live</b>" in text


def test_runs_are_named_by_what_tells_them_apart() -> None:
    assert names(["/a/run", "/b/other"]) == ["run", "other"]
    assert names(["/a/run", "/b/run"]) == ["a/run", "b/run"]
    assert names(["s3://bucket/run/", "/b/other"]) == ["run", "other"]
    assert names(["/a/run", "/a/run"]) == ["run (1)", "run (2)"]


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-3, 12) == pytest.approx([-2.5, 0, 2.5, 5, 7.5, 10])
    assert ticks(5, 5) == [5]


def test_a_line_is_broken_where_there_is_no_value() -> None:
    chart = Chart(x=(0, 3), y=(0, 1), x_title="x", y_title="y")
    chart.line([(0, 1.0), (1, None), (2, 1.0), (3, 1.0)], colour="#000", series="a")
    path = re.search(r'<path d="(M[^"]+)" fill="none" stroke="#000"', chart.text())
    assert path is not None
    assert (path[1].count("M"), path[1].count("L")) == (2, 1)


class _References(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href") and value != "data:,"]


def test_the_page_fetches_nothing_and_says_what_its_figures_are(runs: dict[str, Path]) -> None:
    text = page([report(open_run(folder), prices()) for folder in runs.values()])
    references = _References()
    references.feed(text)
    assert references.found == []
    assert "url(" not in text
    assert "@import" not in text
    assert "All figures are <b>simulated</b>" in text
    assert len(text) < 2_000_000


def test_names_cannot_break_out_of_the_page(runs: dict[str, Path]) -> None:
    found = report(open_run(runs["eager"]), prices(), name="</script><script>alert(1)</script>")
    assert "<script>alert" not in page([found])


def test_the_command_writes_page_picture_and_figures(runs: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target, picture = tmp_path / "page.html", tmp_path / "page.png"
    paths = [str(folder) for folder in runs.values()]
    result = CliRunner().invoke(symphony, ["report", *paths, "--out", str(target), "--png", str(picture), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["files"] == [str(target), str(picture)]
    assert [run["name"] for run in found["runs"]] == ["eager", "deferred"]
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert picture.read_bytes().startswith(b"\x89PNG")


#: Added to a page that is looked at: tells where its figures are, and what went wrong.
_PROBE = """<script>
window.addEventListener("load", function () {
  var boxes = {};
  document.querySelectorAll(".figure").forEach(function (f) {
    var box = f.querySelector("svg") ? f.querySelector(":scope > svg").getBoundingClientRect() : null;
    if (box) boxes[f.id] = [box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY];
  });
  document.body.dataset.boxes = JSON.stringify(boxes);
});
</script>"""


def _browse(url: str, *options: str) -> Any:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    log = ["--enable-logging=stderr", "--v=0", "--window-size=1500,6000"]
    return subprocess.run([*command, *log, *options, url], capture_output=True, text=True, timeout=150, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_browser_draws_every_figure_without_errors(runs: dict[str, Path], tmp_path: Path) -> None:
    Image = pytest.importorskip(
        "PIL.Image", reason="Pillow is needed to look at the screenshot (comes with matplotlib)"
    )
    text = page([report(open_run(folder), prices()) for folder in runs.values()])
    target, shot = tmp_path / "page.html", tmp_path / "shot.png"
    target.write_text(text.replace("</body>", f"{_PROBE}</body>"))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    seen = _browse(target.as_uri(), profile, "--dump-dom")
    match = re.search(r'data-boxes="([^"]+)"', seen.stdout)
    assert match is not None
    boxes = json.loads(match[1].replace("&quot;", '"'))
    sections = ("slo-attainment-over-time", "goodput-over-time", "batch-sizes", "gpu-timeline", "window-use")
    expected = {"latency-0", *(f"{s}-{i}" for s in (*sections, "requests-not-in-time") for i in (0, 1))}
    assert set(boxes) == expected
    drawn = _browse(target.as_uri(), profile, f"--screenshot={shot}")
    assert "CONSOLE" not in seen.stderr + drawn.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    for name, (left, top, right, bottom) in boxes.items():
        inside = pixels[int(top) : int(bottom), int(left) : int(right)]
        # Axes and text are grey; data has colour.
        coloured = (inside.max(axis=2) - inside.min(axis=2)) > 40
        assert coloured.sum() > 200, name
