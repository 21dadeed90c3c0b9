"""Keeps a cluster at work for hours while models are rolled out, workers come and go, and faults happen: ``symphony
soak``.

Scheduler, workers and another client are processes of their own; the client that is measured is this process. What is
drawn at random comes from a seed, though what it meets depends on the machine's timing. The scheduler stays the same
process throughout, and one worker is never killed, so that slow growth shows.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.cli.partial_files import report_if_interrupted
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS, NS_PER_S
from workloads.faults import kinds
from workloads.faults.cluster import FaultyCluster, Part
from workloads.faults.kinds import KINDS, Fault, Scene
from workloads.faults.models import Scripted
from workloads.faults.plan import WEIGHTS
from workloads.faults.traffic import Load, Sent, Traffic

#: What is asked for: two emulated models, one that is told to misbehave, and one of large payloads.
LOADS = (
    Load("fast", 40.0, 200 * NS_PER_MS),
    Load("heavy", 10.0, 600 * NS_PER_MS),
    Load("odd", 10.0, 400 * NS_PER_MS),
    Load("wide", 5.0, 400 * NS_PER_MS, numbers=2500),
)
_PROFILES = {"fast": (0.5, 4.0), "heavy": (3.0, 20.0), "odd": (0.5, 8.0), "wide": (0.5, 8.0)}

#: Mean seconds between faults, bursts, roll-outs and changes of the number of workers.
FAULT_S, BURST_S, ROLL_OUT_S, SCALE_S = 30.0, 20.0, 90.0, 150.0

LEAST_WORKERS, MOST_WORKERS = 2, 4

#: Kinds of faults that are left out: another scheduler or a thread that hangs for ever is growth by itself, and there
#: is neither a gateway nor a disk of its own here. One that ends its process would end the worker that is spared.
_LEFT_OUT = ("scheduler", "gateway", "disk", "stuck", "exit")

#: After its deadline a request has ended within a second; what this process may be late by itself comes on top.
END_NS = NS_PER_S + 100 * NS_PER_MS

#: How much of a run, and of the life of a process, is warm-up: this share, and no more than so many seconds. Dask's
#: processes keep an hour of their monitor's values: two that do nothing grow by 2 MiB until then (docs/results.md).
WARM_UP, WARM_UP_S = 0.5, 3600.0

_MIB = 1 << 20


@dataclass
class _Seen:
    """What became of requests; ``took_ms`` by model since the last sample."""

    ended: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    late_ends: int = 0
    wrong_answers: int = 0
    took_ms: dict[str, list[float]] = field(default_factory=dict)

    def add(self, sent: Sent) -> None:
        self.ended += 1
        self.outcomes[sent.error or sent.outcome] += 1
        self.wrong_answers += not sent.right
        self.late_ends += sent.took_ns > sent.load.slo_ns + END_NS
        if not sent.error:
            self.took_ms.setdefault(sent.load.model, []).append(sent.took_ns / NS_PER_MS)


def soak(
    *,
    hours: float,
    seed: int = 0,
    folder: str | None = None,
    every_s: float = 60.0,
    workers: int = 3,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run for so long; the report so far is in ``folder/soak.json`` after each sample, the samples in samples.jsonl.

    every_s: between samples. Raises ``BadInput`` on values not above 0, or a folder that cannot be made.
    """
    if not hours > 0 or not every_s > 0 or workers < 1:
        raise BadInput(f"hours={hours}, every={every_s}, workers={workers}: all must be above 0")
    where = Path(folder or time.strftime("symphony-soak-%Y%m%d-%H%M%S")).absolute()
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"folder {str(where)!r} cannot be made ({error}): give another") from error
    models = where / "models"
    models.mkdir(exist_ok=True)
    settings = {"DASK_SYMPHONY__MAX_REQUESTS": "8192"}
    with (
        FaultyCluster(workers, settings=settings) as cluster,
        Client(cluster.address, set_as_default=False, timeout=120) as control_client,
        Client(cluster.linked_address, set_as_default=False, timeout=120) as client,
        Serving(control_client) as control,
        Serving(client) as serving,
    ):
        run = _Soak(cluster, control, serving, where, random.Random(f"soak {seed}"), hours, every_s, on_progress)
        return run.run(seed)


class _Soak:
    def __init__(
        self,
        cluster: FaultyCluster,
        control: Serving,
        serving: Serving,
        folder: Path,
        draw: random.Random,
        hours: float,
        every_s: float,
        on_progress: Callable[[str], None],
    ) -> None:
        self._cluster, self._control, self._serving = cluster, control, serving
        self._folder, self._draw, self._hours, self._every_s = folder, draw, hours, every_s
        self._say = on_progress
        self._scene = Scene(cluster, control, str(folder / "models"), "odd", spared=[cluster.workers[0]])
        self._seen = _Seen()
        self._samples: list[dict[str, Any]] = []
        self._faults: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._troubles: Counter[str] = Counter()
        self._versions = 0
        self._wanted = len(cluster.workers)
        #: What is to be undone, and when.
        self._later: list[tuple[float, Callable[[], None]]] = []

    def run(self, seed: int) -> dict[str, Any]:
        control = self._control
        control.wait_ready(gpus=self._wanted, timeout="120s")
        for load in LOADS:
            self._deploy(load)
            self._serving.find(load.model)
        control.record(str(self._folder / "run"), complete=False)
        self._cluster.start_victim("fast")
        for kind in ("worker", "client"):
            self._cluster.prepare(kind)
        self._began = time.monotonic()
        self._traffic = Traffic(self._serving, LOADS, seed=seed, keep=False, on_end=self._seen.add)
        self._traffic.start()
        try:
            with report_if_interrupted(lambda: f'{self._folder} is partial: "final" in its soak.json is false'):
                self._go_on()
        finally:
            self._traffic.stop()
        for fault in list(self._scene.under_way):
            self._try("clearing", partial(kinds.clear, self._scene, fault))
        end = time.monotonic() + 5
        while self._seen.ended < self._traffic.submitted and time.monotonic() < end:
            time.sleep(0.05)
        control.stop_recording(complete=True)
        self._sample()
        return self._report(final=True)

    def _go_on(self) -> None:
        calls = {
            FAULT_S: self._fault,
            BURST_S: self._burst,
            ROLL_OUT_S: self._roll_out,
            SCALE_S: self._scale,
        }
        due = {every_s: self._next(every_s) for every_s in calls}
        sample_s = self._began
        ends = self._began + self._hours * 3600
        while (now := time.monotonic()) < ends:
            if now >= sample_s:
                sample_s = max(sample_s + self._every_s, now)
                self._try("sampling", self._sample)
                self._try("reporting", self._report)
            for at, call in [later for later in self._later if later[0] <= now]:
                self._later.remove((at, call))
                self._try("undoing", call)
            for every_s, call in calls.items():
                if due[every_s] <= now:
                    due[every_s] = self._next(every_s)
                    self._try(call.__name__.strip("_"), call)
            time.sleep(0.02)

    def _next(self, every_s: float) -> float:
        return time.monotonic() + self._draw.uniform(0.5, 1.5) * every_s

    def _try(self, what: str, call: Callable[[], Any]) -> None:
        """What faults keep from being done is put down, and the soak goes on."""
        try:
            call()
        except Exception as error:
            self._troubles[f"{what}: {type(error).__name__}"] += 1
            self._say(f"{what} failed: {type(error).__name__}: {str(error)[:200]}")

    # What happens

    def _fault(self) -> None:
        names = [name for name in sorted(KINDS) if not any(part in name for part in _LEFT_OUT)]
        (kind,) = self._draw.choices(names, [WEIGHTS.get(name, 1.0) for name in names])
        fault = Fault(kind, 0.0, round(self._draw.uniform(0.1, 2.0), 2), self._draw.randrange(1, 4))
        self._faults[kind] += 1
        kinds.begin(self._scene, fault)
        self._later.append((time.monotonic() + fault.for_s, lambda: kinds.clear(self._scene, fault)))

    def _burst(self) -> None:
        self._done["bursts"] += 1
        self._traffic.burst(self._draw.uniform(2, 5))
        self._later.append((time.monotonic() + self._draw.uniform(0.5, 3), lambda: self._traffic.burst(1.0)))

    def _roll_out(self) -> None:
        """A new version of a model, at once or as a canary that is promoted or taken back."""
        load = self._draw.choice(LOADS)
        canary = self._draw.choice([None, 0.3])
        self._deploy(load, canary)
        self._done["roll_outs"] += 1
        if canary is not None:
            end = self._draw.choice([self._control.promote, self._control.rollback])
            self._later.append((time.monotonic() + 5, lambda: end(load.model)))

    def _deploy(self, load: Load, canary: float | None = None) -> None:
        alpha, beta = _PROFILES[load.model]
        self._versions += 1
        scripted = load.model in ("odd", "wide")
        slower = 1 + 0.05 * (self._versions % 3)
        folder = str(self._folder / "models")
        model: Scripted | Doubling = Scripted(folder, load.model, alpha, beta * slower, log=False)
        if load.model in ("fast", "heavy"):
            model = Doubling(Emulated(alpha, beta * slower))
        profile = (alpha, beta * slower)
        slo = f"{load.slo_ns}ns"
        self._control.deploy(
            load.model, model, slo=slo, profile=profile, max_batch=16 if scripted else 32, canary=canary
        )

    def _scale(self) -> None:
        """One worker more or less, the latter drained before."""
        step = self._draw.choice([-1, 1])
        self._wanted = min(max(self._wanted + step, LEAST_WORKERS), MOST_WORKERS)
        workers = [part for part in self._cluster.workers if part.alive]
        self._done["scalings"] += 1
        if len(workers) < self._wanted:
            self._cluster.add_worker()
            self._cluster.prepare("worker")
        elif len(workers) > self._wanted:
            leaves = next(part for part in reversed(workers) if part not in self._scene.spared)
            self._control.drain([leaves.name], why="soak")
            self._later.append((time.monotonic() + 3, lambda: self._leave(leaves)))

    def _leave(self, part: Part) -> None:
        self._control.retire([part.name], force=True, timeout="5s")
        if part in self._cluster.workers:
            self._cluster.workers.remove(part)
        part.end()

    # What is measured

    def _sample(self) -> None:
        scheduler = self._cluster.scheduler
        assert scheduler is not None
        parts = [("scheduler", scheduler.process.pid), ("client", os.getpid())]
        parts += [("worker", part.process.pid) for part in self._cluster.workers if part.alive]
        took, self._seen.took_ms = self._seen.took_ms, {}
        latency = {m: np.quantile(values, [0.5, 0.99]).tolist() for m, values in took.items() if values}
        processes = [row for name, pid in parts if (row := _measured(name, pid)) is not None]
        t_s = time.monotonic() - self._began
        sample: dict[str, Any] = {"t_s": t_s, "processes": processes, "latency_ms": latency}
        sample |= {"ended": self._seen.ended, "submitted": self._traffic.submitted, "faults": self._faults.total()}
        self._samples.append(sample)
        with (self._folder / "samples.jsonl").open("a") as out:
            out.write(json.dumps(sample) + "\n")
        texts = [f"{row['process']} {row['rss_mib']:.0f} MiB" for row in processes]
        minutes = t_s / 60
        self._say(
            f"{minutes:6.1f} min, {self._seen.ended:,} requests, {self._faults.total()} faults; {', '.join(texts)}"
        )

    def _report(self, *, final: bool = False) -> dict[str, Any]:
        seconds = time.monotonic() - self._began
        report = {
            "label": "measured; GPUs emulated, faults made, everything else real",
            "hours": seconds / 3600,
            "asked_hours": self._hours,
            "final": final,
            "requests": self._seen.ended,
            "outcomes": dict(self._seen.outcomes.most_common()),
            "not_sent": self._traffic.refused,
            "late_ends": self._seen.late_ends,
            "wrong_answers": self._seen.wrong_answers,
            "hanging": self._traffic.submitted - self._seen.ended if final else None,
            "faults": self._faults.total(),
            "fault_kinds": dict(self._faults.most_common()),
            **{name: self._done[name] for name in ("bursts", "roll_outs", "scalings")},
            "troubles": dict(self._troubles),
            "warm_up_s": _warm_up_s(seconds),
            "slopes": slopes(self._samples, _warm_up_s(seconds)),
            "samples": len(self._samples),
            "folder": str(self._folder),
        }
        beside = self._folder / "soak.json.new"
        beside.write_text(json.dumps(report, indent=1))
        beside.replace(self._folder / "soak.json")
        return report


class Doubling:
    """Doubles its samples in the time that an emulated model takes."""

    def __init__(self, emulated: Emulated) -> None:
        self._emulated = emulated

    def __call__(self, batch: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        self._emulated.run(memoryview(b""), np.zeros(len(batch), np.int64))
        return batch * 2


def _warm_up_s(seconds: float) -> float:
    return min(WARM_UP_S, WARM_UP * seconds)


def _measured(name: str, pid: int) -> dict[str, Any] | None:
    """Memory, descriptors and threads of a process; None when it has gone."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            memory, threads = process.memory_info().rss / _MIB, process.num_threads()
        return {"process": name, "pid": pid, "rss_mib": memory, "descriptors": process.num_fds(), "threads": threads}
    except psutil.Error:
        return None


def slopes(samples: Sequence[dict[str, Any]], warm_up_s: float) -> list[dict[str, Any]]:
    """How memory, descriptors, threads and latencies grow, an hour: least squares, after the warm-up.

    Processes of one kind have one slope, and an intercept each; each has a warm-up of its own.
    """
    series: dict[tuple[str, str], dict[Any, list[tuple[float, float]]]] = {}
    for sample in samples:
        for row in sample["processes"]:
            for what in ("rss_mib", "descriptors", "threads"):
                own = series.setdefault((row["process"], what), {}).setdefault(row["pid"], [])
                own.append((sample["t_s"], row[what]))
        for model, values in sample["latency_ms"].items():
            for what, value in zip(("p50_ms", "p99_ms"), values, strict=True):
                series.setdefault((model, what), {}).setdefault(0, []).append((sample["t_s"], value))
    found = []
    for (process, what), groups in series.items():
        warm = [_after(points, warm_up_s) for points in groups.values()]
        last = next(reversed(groups.values()))[-1][1]
        per_hour = 3600 * _slope([points for points in warm if len(points) > 1])
        found.append({"process": process, "what": what, "last": last, "per_hour": per_hour})
    return found


def _after(points: Sequence[tuple[float, float]], warm_up_s: float) -> npt.NDArray[np.float64]:
    values = np.array(points)
    return values[values[:, 0] >= values[0, 0] + warm_up_s]


def _slope(groups: Sequence[npt.NDArray[np.float64]]) -> float:
    """The common slope of several lines."""
    products = squares = 0.0
    for points in groups:
        t, y = (points - points.mean(axis=0)).T
        products += float(t @ y)
        squares += float(t @ t)
    return products / squares if squares else 0.0
