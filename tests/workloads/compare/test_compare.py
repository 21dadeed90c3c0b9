from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from symphony_dask.cli.main import symphony
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.compare import compare, gpus_needed, gpus_used, tables
from workloads.compare.cells import GRIDS, Cell, Grid
from workloads.compare.gpus_needed import Needed, attains, least
from workloads.simulation.process_pool import run_all
from workloads.simulation.result import SimModel, Simulated

CELL = Cell("resnet50", models=2, gpus=4, slo_ns=25 * NS_PER_MS, shape=1.0)


def serves(rate_hz: Callable[[int], float]) -> Any:
    """A scheduler that has all requests in time up to ``rate_hz(gpus)``, and none beyond it."""

    def simulated(models: Sequence[SimModel], gpus: int, arrivals_ns: Any, choices: Any) -> Simulated:
        n = len(arrivals_ns)
        ok = n / (arrivals_ns[-1] / NS_PER_S) <= 1.001 * rate_hz(gpus)
        outcome = np.full(n, Outcome.OK if ok else Outcome.LATE, np.int8)
        zero, one = np.zeros(1, np.int32), np.zeros(1, np.int64)
        return Simulated(outcome, arrivals_ns, zero, zero, zero + 2, one, one + 1, gpus, NS_PER_S)

    return simulated


def cells_goodputs(**goodputs_hz: float | None) -> list[dict[str, Any]]:
    """The rows of one cell with the bound at 1,000 requests/s."""
    rows: list[dict[str, Any]] = [{"policy": name, "goodput_hz": hz} for name, hz in goodputs_hz.items()]
    compare._add_ratios(rows)
    for row in rows:
        fraction = None if row["goodput_hz"] is None else row["goodput_hz"] / 1_000
        outcome = compare.CANNOT_PLACE if fraction is None else compare.SERVED
        row.update(CELL.columns, bound_hz=1_000.0, bound_fraction=fraction, outcome=outcome)
    return rows


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(symphony, ["compare", *arguments])
    assert result.exit_code == 0, result.output
    return result


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(symphony, ["compare", *arguments])
    assert result.exit_code == 1, result.output
    return result.output


def test_the_default_grid_has_108_cells_of_both_profiles_at_their_own_slos() -> None:
    cells = GRIDS["default"].cells()
    assert len(set(cells)) == 108
    slos_ms = {
        profile: {c.slo_ns / NS_PER_MS for c in cells if c.profile == profile} for profile in GRIDS["default"].profiles
    }
    assert slos_ms == {"resnet50": {25, 50, 100}, "inception-resnet-v2": {70, 140, 280}}
    assert {(c.models, c.gpus, c.shape) for c in cells} == {
        (m, g, s) for m in (1, 10, 100) for g in (8, 64) for s in (0.1, 0.3, 1)
    }
    assert (len(GRIDS["gpus"].cells()), len(GRIDS["small"].cells())) == (24, 4)


def test_a_profile_of_numbers_needs_an_slo() -> None:
    with pytest.raises(BadInput, match=r"profile '1,5' has no SLO of its own: give --slo"):
        Grid(profiles=["1,5"]).cells()
    assert [cell.slo_ns for cell in Grid(["1,5"], [1], [1], [7], (), [1.0]).cells()] == [7]
    with pytest.raises(BadInput, match="gpus is 0"):
        Grid(gpus=[0]).cells()


@pytest.mark.parametrize(
    ("rate_hz", "span_s"),
    [(10_000, 20.0), (1_000, 60.0), (1_000_000, 2.5)],  # 200,000 requests; no more than 60 s; no less than 100 SLOs
)
def test_a_simulation_is_as_long_as_its_requests_take_within_limits(rate_hz: float, span_s: float) -> None:
    assert CELL.span_s(rate_hz, 200_000) == span_s


def test_ratios_are_the_default_policys_goodput_over_the_others() -> None:
    rows = cells_goodputs(adaptive=900, deferred=800, eager=600, nexus=300, clipper=0, clockwork=None)
    ratios = {row["policy"]: row["adaptive_over_policy"] for row in rows}
    assert ratios == {"adaptive": 1, "deferred": 1.125, "eager": 1.5, "nexus": 3, "clipper": None, "clockwork": None}
    assert {row["adaptive_over_better"] for row in rows} == {1.125}


def test_without_deferred_and_eager_there_is_no_better_of_the_two() -> None:
    assert {row["adaptive_over_better"] for row in cells_goodputs(adaptive=900, eager=600)} == {None}
    assert {row["adaptive_over_policy"] for row in cells_goodputs(deferred=900, eager=600)} == {None}


def test_the_summary_has_the_worst_median_and_best_cell() -> None:
    rows = cells_goodputs(adaptive=900, deferred=800, eager=600, nexus=300)
    rows += cells_goodputs(adaptive=796, deferred=800, eager=500, nexus=None)
    rows += cells_goodputs(adaptive=700, deferred=500, eager=1000, nexus=100)
    found = {row["policy"]: row for row in compare.summary(pl.DataFrame(rows)).to_dicts()}
    assert list(found) == ["adaptive", "deferred", "eager", "nexus", "better of deferred and eager"]
    spread = ("worst", "median", "best")
    nexus = found["nexus"]
    assert (nexus["cells"], nexus["served"]) == (3, 2)
    assert [nexus[f"bound_fraction_{name}"] for name in spread] == pytest.approx([0.1, 0.2, 0.3])
    assert [nexus[f"ratio_{name}"] for name in spread] == [3, 5, 7]
    better = found["better of deferred and eager"]
    assert [better[f"bound_fraction_{name}"] for name in spread] == pytest.approx([0.8, 0.8, 1.0])
    assert [better[f"ratio_{name}"] for name in spread] == pytest.approx([0.7, 0.995, 1.125])
    assert (better["within_1_percent"], better["ahead_by_3_percent"]) == (2, 1)


def test_goodput_of_a_cell_no_scheduler_can_serve_and_of_models_that_find_no_place_is_null() -> None:
    impossible = Cell("resnet50", 1, 4, 6 * NS_PER_MS, 1.0)  # l(1) is 6.125 ms
    crowded = Cell("resnet50", 20, 1, 25 * NS_PER_MS, 1.0)  # Nexus puts no more than a few models on a GPU
    frame = compare.compare_goodput([impossible, crowded, CELL], ["eager", "nexus"], requests=20_000, processes=1)
    assert frame.columns == list(compare.SCHEMA)
    assert frame["outcome"].to_list() == ["no scheduler can"] * 2 + ["served", "cannot place"] + ["served"] * 2
    assert frame["goodput_hz"].is_null().to_list() == [True, True, False, True, False, False]
    assert frame["bound_fraction"].is_null().to_list() == [True, True, False, True, False, False]
    assert frame["bound_hz"].to_list()[:2] == [0, 0]
    assert frame.filter(pl.col("goodput_hz") > 0)["mean_batch"].min() >= 1  # type: ignore[operator]


def test_several_seeds_give_an_interval() -> None:
    frame = compare.compare_goodput([CELL], ["eager"], requests=1_000, seeds=2, processes=1)
    assert frame["low_hz"][0] < frame["goodput_hz"][0] < frame["high_hz"][0]


def test_several_processes_give_the_results_in_the_order_of_the_items() -> None:
    assert run_all(abs, [-1, 2, -3], [1, 2, 3], processes=2) == [1, 2, 3]


def test_the_dearest_items_start_first_and_results_keep_their_order() -> None:
    started: list[int] = []
    seen: list[tuple[float, float]] = []

    def double(item: int) -> int:
        started.append(item)
        return 2 * item

    found = run_all(double, [1, 2, 3], [5, 9, 1], processes=1, on_progress=lambda *args: seen.append(args))
    assert (found, started) == ([2, 4, 6], [2, 1, 3])
    assert seen == [(0, 15), (9, 15), (14, 15), (15, 15)]


@pytest.mark.parametrize("start", [1, 7, 10, 11, 40, 500])
def test_the_least_number_of_gpus_is_found_from_wherever_the_search_starts(start: int) -> None:
    assert least(lambda gpus: gpus >= 11, start, 200) == Needed(11, True)
    assert least(lambda gpus: True, start, 200) == Needed(1, True)
    assert least(lambda gpus: gpus >= 200, start, 200) == Needed(200, True)
    assert least(lambda gpus: False, start, 200) == Needed(None, True)


def test_a_number_after_which_more_gpus_are_too_few_is_not_the_answer() -> None:
    assert least(lambda gpus: gpus in (10, 11) or gpus >= 13, 10, 200) == Needed(13, False)
    assert least(lambda gpus: gpus == 8 or gpus >= 10, 10, 200) == Needed(10, False)  # 8 will do, 9 will not
    assert least(lambda gpus: gpus == 10, 10, 12) == Needed(None, False)


def test_gpus_needed_are_the_fewest_that_attain_the_load() -> None:
    attained = attains(serves(lambda gpus: 100 * gpus), CELL, load_hz=1_250, seconds=4.0, seeds=range(2))
    assert [gpus for gpus in range(1, 20) if attained(gpus)] == list(range(13, 20))


def test_gpus_needed_stand_beside_the_ideal_and_what_the_default_policy_saves() -> None:
    impossible = Cell("resnet50", 1, 4, 6 * NS_PER_MS, 1.0)
    policies = ["adaptive", "eager"]
    frame = gpus_needed.gpus_needed([CELL, impossible], policies, requests=4_000, processes=1)
    assert frame.columns == list(gpus_needed.SCHEMA)
    ours, eager, *none = frame.to_dicts()
    assert ours["ideal_gpus"] == pytest.approx(4, abs=0.01)
    assert 4 <= ours["gpus_needed"] <= 6
    assert eager["adaptive_saving"] == 1 - ours["gpus_needed"] / eager["gpus_needed"]
    assert [(row["gpus_needed"], row["outcome"]) for row in none] == [(None, "no scheduler can")] * 2
    found = gpus_needed.summary(frame).to_dicts()[0]
    assert (found["loads"], found["served"]) == (2, 1)
    assert found["over_ideal_worst"] == ours["gpus_needed"] / 4


def test_given_loads_take_the_place_of_numbers_of_gpus() -> None:
    cells = [CELL, Cell("resnet50", 2, 64, 25 * NS_PER_MS, 1.0)]
    frame = gpus_needed.gpus_needed(cells, ["eager"], loads_hz=[100, 500], requests=1_000, processes=1)
    assert frame["load_hz"].to_list() == [100, 500]
    with pytest.raises(BadInput, match=r"loads \[0\]"):
        gpus_needed.gpus_needed(cells, ["eager"], loads_hz=[0])


def test_gpus_in_use_are_the_fewest_that_do_99_percent_of_the_work() -> None:
    def result(*work_ns: int) -> Simulated:
        k = len(work_ns)
        start, end = np.zeros(k, np.int64), np.array(work_ns, np.int64)
        gpu, none = np.arange(k, dtype=np.int32), np.zeros(k, np.int32)
        return Simulated(np.zeros(1, np.int8), start[:1], gpu, none, none + 1, start, end, k + 1, 1)

    assert gpus_used.gpus_in_use(result(1, 98, 1)) == 2
    assert gpus_used.gpus_in_use(result(980, 15, 5)) == 2
    assert gpus_used.gpus_in_use(result(50, 50)) == 2
    assert gpus_used.gpus_in_use(result(991, 9)) == 1


def test_gpus_used_follow_the_load_under_the_papers_rule_and_not_under_eager() -> None:
    cell = Cell("resnet50", 1, 8, 25 * NS_PER_MS, 1.0)
    frame = gpus_used.gpus_used([cell], ["deferred", "eager"], parts=[0.25, 1.0], requests=20_000, processes=1)
    assert frame.columns == list(gpus_used.SCHEMA)
    low, full, eager, _ = frame.to_dicts()
    assert low["load_hz"] == pytest.approx(low["capacity_hz"] / 4, rel=1e-3)
    assert low["ideal_gpus"] <= 1.02 * low["busy_gpus"] < 1.05 * low["ideal_gpus"]
    assert low["most_gpus"] == 1.05 * low["ideal_gpus"] + 1
    assert (low["busy_within"], low["attainment"], full["gpus_in_use"]) == (True, 1.0, 8)
    assert eager["busy_gpus"] > 2 * eager["ideal_gpus"]
    assert not eager["busy_within"]
    assert gpus_used.summary(frame)["busy_within"].to_list() == [2, 0]


def test_policies_without_goodput_have_one_row_that_says_so() -> None:
    crowded = Cell("resnet50", 20, 1, 25 * NS_PER_MS, 1.0)
    frame = gpus_used.gpus_used([crowded], ["nexus"], requests=20_000, processes=1)
    assert frame.select("outcome", "part", "busy_gpus").rows() == [("no goodput", None, None)]


def test_the_command_writes_parquet_and_png_figures_and_prints_one_json_object(tmp_path: Path) -> None:
    cell = ["--profile", "resnet50", "--models", "1,2", "--gpus", "2", "--slo", "25ms", "--shape", "1"]
    rest = ["--requests", "1000", "--processes", "1", "--json", "--out"]
    result = run(*cell, "--policy", "adaptive,deferred,eager", *rest, str(tmp_path))
    found = json.loads(result.stdout)
    assert (found["label"], found["measure"]) == ("simulated", "goodput")
    assert len(found["rows"]) == 6
    assert pl.read_parquet(tmp_path / "compare.parquet").to_dicts() == found["rows"]
    pngs = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pngs] == ["bound_fraction.png", "goodput_models.png", "ratio.png"]
    assert {str(path) for path in pngs} < set(found["files"])
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pngs)


@pytest.mark.parametrize(("measure", "figure"), [("gpus-needed", "gpus_needed.png"), ("gpus-used", "gpus_used.png")])
def test_the_command_counts_gpus(measure: str, figure: str, tmp_path: Path) -> None:
    cell = ["--profile", "1.053,5.072", "--models", "1", "--gpus", "2", "--slo", "25ms", "--shape", "1"]
    rest = ["--policy", "adaptive", "--policy", "eager", "--requests", "1000", "--processes", "1"]
    result = run("--measure", measure, *cell, *rest, "--out", str(tmp_path), "--markdown")
    assert result.stdout.startswith("**GPUs ")
    assert "| profile | models |" in result.stdout
    assert "simulated" in result.stdout
    assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_command_says_what_models_prefer() -> None:
    cell = ["--profile", "resnet50", "--models", "1", "--gpus", "2", "--slo", "25ms", "--shape", "1"]
    rest = ["--measure", "gpus-used", "--requests", "2000", "--processes", "1", "--json", "--policy"]
    busy = {}
    for prefer in ("latency", "gpus"):
        found = json.loads(run(*cell, *rest, "adaptive,deferred", "--prefer", prefer).stdout)
        assert found["prefer"] == prefer
        busy[prefer] = [row["busy_gpus"] for row in found["rows"] if row["part"] == 0.1]
    assert busy["gpus"][0] < busy["latency"][0]
    assert busy["gpus"][1] == busy["latency"][1]
    assert "prefer is 'gpus': only policy 'adaptive' looks at it, not eager, nexus" in refusal(
        *cell, "--policy", "eager,nexus", "--prefer", "gpus"
    )


def test_tables_show_missing_figures_as_a_dash_and_ratios_to_each_other_policy() -> None:
    rows = [
        {**dict.fromkeys(compare.SCHEMA), **row}
        for row in cells_goodputs(adaptive=900, deferred=800, eager=600, nexus=None)
    ]
    frame = pl.DataFrame(rows, schema=compare.SCHEMA)
    cells, over_all = tables.goodput_tables(frame, compare.summary(frame))
    assert [head.replace("\n", " ") for head in cells.heads[5:]] == [
        "bound req/s",
        "adaptive req/s",
        "of the bound",
        "mean batch",
        "over better",
        "over deferred",
        "over eager",
        "over nexus",
    ]
    assert cells.rows == [
        ["resnet50", "2", "4", "25ms", "1", "1,000", "900", "90.0 %", "–", "1.125", "1.125", "1.500", "–"]
    ]
    assert over_all.rows[3][:3] == ["nexus", "1", "0"]
    assert cells.markdown().splitlines()[3].startswith("| --- | ---: | ---: |")


def test_figures_without_matplotlib_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'symphony-dask[plot]'" in refusal("--grid", "small", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "fifo"], "policy 'fifo' is unknown: choose one of"),
        (["--models", "many"], "models 'many' cannot be read: give numbers"),
        (["--profile", "vgg"], "profile 'vgg' cannot be read"),
        (["--popularity", "pareto"], "popularity 'pareto' is unknown: choose one of equal, zipf"),
        (["--load", "100"], "they go with gpus-needed only"),
        (["--seeds", "0"], "seeds=0"),
        (["--processes", "0"], "processes is 0"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments: list[str], message: str) -> None:
    assert message in refusal("--grid", "small", *arguments)


def test_profiles_may_be_names_and_pairs_of_numbers_in_one_list() -> None:
    from workloads.cli.compare_grid import listed_profiles

    assert listed_profiles(["resnet50,1.0,5", "2,6"]) == ["resnet50", "1.0,5", "2,6"]
