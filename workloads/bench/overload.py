"""Measures what is left of goodput, latency and fairness where far more is asked for than fits: ``symphony bench
overload``.

One model on emulated GPUs over a real cluster, offered so many times its capacity (the goodput bound of its profile) by
the open-loop generator: what is answered in time, how soon the rest is refused, and how much memory the scheduler
takes. Then the same load after which the rate falls to half the capacity: how soon all is answered again. Then two
models: one asks for a tenth of what the GPUs can do, beside one that floods.

A queue holds what can be served within one SLO; more would only wait to be dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.cli.partial_files import whole_file
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_MS, NS_PER_S, format_duration
from workloads.compare.bound import BoundModel, goodput_bound
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster
from workloads.traces.synthetic_arrivals import poisson

#: Offered loads over capacity; the first ones find the peak.
TIMES = (0.5, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0)

#: What the interactive model asks for, over the GPUs' capacity for it, and what is offered after a flood.
INTERACTIVE, AFTER = 0.1, 0.5

#: After a flood attainment is looked at in stretches of so long, and is back from this share on.
STRETCH_S, BACK = 0.1, 0.95

_MIB = 1 << 20
_MEMORY_S = 0.05


def bench_overload(
    *,
    times: Sequence[float] = TIMES,
    alpha_ms: float = 5.09,
    beta_ms: float = 18.368,
    slo_ns: int = 100 * NS_PER_MS,
    gpus: int = 4,
    seconds: float = 6.0,
    payload_bytes: int = 100,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Goodput by offered load, with what the last of it did to the rest; see the module.

    seconds: length of each load. Raises ``BadInput`` on values not above 0.
    """
    if not times or min(times) <= 0 or gpus < 1 or not seconds > 0 or payload_bytes < 1:
        text = f"times={list(times)}, gpus={gpus}, seconds={seconds}, payload={payload_bytes}"
        raise BadInput(f"{text}: give at least one of each, all above 0")
    profile = LatencyProfile(alpha_ms, beta_ms)
    capacity = goodput_bound([BoundModel(profile, slo_ns, 1.0)], gpus).bound_hz
    limit = max(1, round(capacity * slo_ns / NS_PER_S))
    sample = bytes(payload_bytes)
    with ProcessCluster(gpus) as cluster, Client(cluster.address) as client, Serving(client) as serving:
        serving.wait_ready(gpus=gpus)

        def deploy(name: str) -> Model:
            slo = f"{slo_ns}ns"
            model: Model = serving.deploy(name, Emulated(alpha_ms, beta_ms), slo=slo, queue_limit=limit)
            return model

        model = deploy("flood")
        with _Memory(cluster.pids[0]) as memory:
            rows = []
            for factor in (times[0], *times):  # the first warms up
                rows.append(_row(serving, model, factor, capacity, seconds, sample, memory))
                row = rows[-1]
                on_progress(
                    f"{factor:g} times: {row['offered_hz']:,.0f} req/s offered, {row['goodput_hz']:,.0f} in time, "
                    f"refused within {row['rejection_p99_ms'] or 0:.1f} ms (p99), {row['scheduler_mib']:.0f} MiB"
                )
            rows = rows[1:]
            recovery = _recovery(serving, model, max(times), capacity, seconds, sample)
            on_progress(f"all in time again {recovery['back_ms'] or -1:.0f} ms after the flood")
            fairness = _fairness(serving, model, deploy("interactive"), max(times), capacity, seconds, sample)
            on_progress(f"beside the flood, {fairness['attainment']:.2%} of the interactive model's are in time")
    peak = max(row["goodput_hz"] for row in rows)
    for row in rows:
        row["share_of_peak"] = row["goodput_hz"] / peak
    over = [row for row in rows if row["times"] >= 2]
    refusals = [row["rejection_p99_ms"] for row in rows if row["rejection_p99_ms"] is not None]
    return {
        "label": f"measured; {gpus} emulated GPUs, l(b) = {alpha_ms:g} b + {beta_ms:g} ms, everything else real",
        "slo_ms": slo_ns / NS_PER_MS,
        "capacity_hz": capacity,
        "queue_limit": limit,
        "peak_hz": peak,
        "least_share_of_peak": min((row["share_of_peak"] for row in over), default=None),
        "rejection_p99_ms": max(refusals, default=None),
        "scheduler_mib": {"idle": memory.first / _MIB, "most": memory.most / _MIB},
        "recovery": recovery,
        "fairness": fairness,
        "rows": rows,
    }


def _row(
    serving: Serving, model: Model, factor: float, capacity: float, seconds: float, sample: bytes, memory: _Memory
) -> dict[str, Any]:
    arrivals = poisson(factor * capacity, seconds, seed=round(100 * factor))
    seen = _offer(serving, [model], arrivals, np.zeros(len(arrivals), np.int32), sample)
    refused = seen.outcome == Outcome.REJECTED
    took_ms = (seen.done - seen.submitted)[refused] / NS_PER_MS
    found = seen.to_dict()
    return {
        "times": factor,
        **{key: found[key] for key in ("offered_hz", "goodput_hz", "requests", "ok", "late", "dropped", "rejected")},
        "failed": found["failed"],
        "p99_ms": found["p99_ms"],
        "rejection_p50_ms": float(np.quantile(took_ms, 0.5)) if len(took_ms) else None,
        "rejection_p99_ms": float(np.quantile(took_ms, 0.99)) if len(took_ms) else None,
        "generator_lateness_p99_ms": found["lateness_p99_ms"],
        "scheduler_mib": memory.most_lately() / _MIB,
    }


def _recovery(
    serving: Serving, model: Model, factor: float, capacity: float, seconds: float, sample: bytes
) -> dict[str, Any]:
    """A flood, and then half of what can be served."""
    flood_s, after_s = seconds / 2, seconds / 2
    flood = poisson(factor * capacity, flood_s, seed=1)
    after = poisson(AFTER * capacity, after_s, seed=2) + round(flood_s * NS_PER_S)
    arrivals = np.concatenate([flood, after])
    seen = _offer(serving, [model], arrivals, np.zeros(len(arrivals), np.int32), sample)
    late_s = (seen.due - seen.due[len(flood)])[len(flood) :] / NS_PER_S
    stretch = (late_s / STRETCH_S).astype(int)
    share = [float(seen.ok[len(flood) :][stretch == i].mean()) for i in range(int(stretch[-1]))]
    back = next((i for i, value in enumerate(share) if value >= BACK), None)
    return {
        "flood_times": factor,
        "after_times": AFTER,
        "stretch_ms": STRETCH_S * 1000,
        "attainment": share,
        "back_ms": None if back is None else back * STRETCH_S * 1000,
    }


def _fairness(
    serving: Serving, flood: Model, interactive: Model, factor: float, capacity: float, seconds: float, sample: bytes
) -> dict[str, Any]:
    """A model that asks for little, beside one that floods."""
    streams = [poisson(factor * capacity, seconds, seed=3), poisson(INTERACTIVE * capacity, seconds, seed=4)]
    arrivals = np.concatenate(streams)
    choices = np.repeat(np.arange(2, dtype=np.int32), [len(stream) for stream in streams])
    order = np.argsort(arrivals, kind="stable")
    arrivals, choices = arrivals[order], choices[order]
    seen = _offer(serving, [flood, interactive], arrivals, choices, sample)
    mine = choices == 1
    # Fairness goes by what models used and lost of late, so the first moments of a flood are nobody's.
    settled = mine & (seen.due >= NS_PER_S)
    answered = mine & seen.answered
    span_s = seconds
    return {
        "flood_times": factor,
        "interactive_times": INTERACTIVE,
        "attainment": float(seen.ok[settled].mean()),
        "attainment_with_first_second": float(seen.ok[mine].mean()),
        "p99_ms": float(np.quantile((seen.done - seen.due)[answered] / NS_PER_MS, 0.99)) if answered.any() else None,
        "flood_goodput_hz": float(seen.ok[~mine].sum() / span_s),
    }


def _offer(
    serving: Serving,
    models: Sequence[Model],
    arrivals: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    sample: bytes,
) -> load_generator.Loaded:
    return load_generator.offer(serving, models, arrivals, choices, samples=[sample] * len(models), drain_s=10)


class _Memory:
    """The resident memory of a process, looked at all the time; bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first = self.most = self._lately = self._process.memory_info().rss
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.set()
        self._thread.join()

    def most_lately(self) -> int:
        """The most since this was last asked."""
        most, self._lately = self._lately, 0
        return most

    def _watch(self) -> None:
        while not self._ends.wait(_MEMORY_S):
            now = self._process.memory_info().rss
            self.most, self._lately = max(self.most, now), max(self._lately, now)


def draw(found: dict[str, Any], path: str) -> None:
    """Goodput against offered load as a picture; needs matplotlib, the extra ``plot``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from workloads.analysis.svg import COLOURS

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    offered = [row["times"] for row in found["rows"]]
    axes.plot(offered, [row["goodput_hz"] for row in found["rows"]], "o-", color=COLOURS[0], label="goodput")
    axes.axhline(0.95 * found["peak_hz"], color="0.5", linestyle=":", label="95 % of its peak")
    axes.axhline(found["capacity_hz"], color=COLOURS[3], linestyle="--", label="bound")
    axes.set_xscale("log")
    axes.set_xticks(offered, [f"{x:g}" for x in offered])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("offered load, times the bound")
    axes.set_ylabel("goodput, requests/s")
    axes.set_title(f"{found['label'].split(',')[0]}, SLO {format_duration(round(found['slo_ms'] * NS_PER_MS))}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=110)
