"""Assesses what a trace asks of any fleet, and policies side by side on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from autoscale.policies.decision import Memory, Settings
from autoscale.policies.demand import WAIT_SHARE, staffed
from autoscale.policies.registry import POLICIES
from symphony_dask.dispatcher.load_signals import gpu_seconds_per_request
from symphony_dask.units import NS_PER_S, format_duration
from workloads.policy_trials.trial import FleetModel, Trial, run_trial
from workloads.simulation.fleet import GPU
from workloads.simulation.process_pool import OnProgress, no_progress, run_all
from workloads.simulation.result import check_length
from workloads.simulation.workload import Workload, read_workload

Floats = npt.NDArray[np.float64]

#: Over how many seconds the peak is measured; and the demand by which launches are judged.
PEAK_S, LEVEL_S = 10, 60


@dataclass(frozen=True)
class Asked:
    """What a trace takes, known only afterwards.

    demand: (n,) GPU-seconds a second in each ``PEAK_S``. peak_gpus: GPUs for the most of it, with the headroom that
    Poisson arrivals need (``demand.staffed``): the fixed peak fleet.
    """

    demand: Floats
    peak_gpus: int
    first_gpus: int

    @property
    def levels(self) -> npt.NDArray[np.int64]:
        """(m,) whole GPUs that the mean demand of each ``LEVEL_S`` takes."""
        wide = LEVEL_S // PEAK_S
        padded = np.pad(self.demand, (0, -len(self.demand) % wide), mode="edge")
        return np.ceil(padded.reshape(-1, wide).mean(1) - 1e-9).astype(np.int64)


def asked(work: Workload, miss: float = 0.01) -> Asked:
    """What the requests of ``work`` take, of GPUs with the models' profiles.

    miss: share of the work that the peak fleet may miss in its worst ten seconds.
    """
    check_length(work.arrivals_ns)
    steps = (work.arrivals_ns - work.arrivals_ns[0]) // (PEAK_S * NS_PER_S)
    n = int(steps[-1]) + 1
    models = len(work.models)
    counts = np.bincount(steps * models + work.choices, minlength=n * models).reshape(n, models)
    if n > 1:
        counts = counts[:-1]  # the last step is cut off by the trace's end
    demand, variance = np.zeros(len(counts)), np.zeros(len(counts))
    for m, model in enumerate(work.models):
        table = model.profile_on(GPU).latency_ns()
        least_s = gpu_seconds_per_request(table, model.slo_ns, 1e7)
        for count in np.unique(counts[counts[:, m] > 0, m]).tolist():
            rate_hz = count / PEAK_S
            cost_s = gpu_seconds_per_request(table, model.slo_ns, rate_hz)
            at = counts[:, m] == count
            demand[at] += rate_hz * cost_s
            variance[at] += rate_hz / (WAIT_SHARE * model.slo_ns / NS_PER_S) * least_s**2
    deviation = np.sqrt(variance)

    def most(steps: slice) -> int:
        pairs = zip(demand[steps].tolist(), deviation[steps].tolist(), strict=True)
        return max(1, *(math.ceil(staffed(d, s, miss) - 1e-9) for d, s in pairs))

    return Asked(demand, most(slice(None)), most(slice(0, 6)))


def least_changes(levels: npt.NDArray[np.int64], gap: int) -> tuple[int, int]:
    """Fewest launches and terminations of a fleet that always has ``levels`` GPUs and keeps none idle for a long time.

    Level k of the fleet is needed in those steps where at least k GPUs are. A fleet that knows the future and bridges
    gaps of at most ``gap`` steps launches level k once for each stretch that remains, but for one that is there from
    the first step on, and terminates it at the end of each, but for one that lasts to the end. Each GPU that is given
    back for less long than ``gap`` would be launched again for nothing, so no policy with such a scale-in window need
    make fewer changes.
    """
    launches = terminations = 0
    for k in range(1, int(levels.max(initial=0)) + 1):
        at = np.flatnonzero(levels >= k)
        stretches = 1 + int((np.diff(at) - 1 > gap).sum())
        launches += stretches - int(at[0] == 0)
        terminations += stretches - int(at[-1] == len(levels) - 1)
    return launches, terminations


def figures(trial: Trial, trace: Asked, settings: Settings, usd_per_hour: float) -> dict[str, Any]:
    """The keys of ``symphony autoscale simulate --json``; all figures are simulated.

    saving: None where the trace is too short to tell (``why_no_saving``).
    """
    hours = trial.span_s / 3600
    unknown = why_no_saving(trial.span_s, settings)
    least = least_changes(trace.levels, round(settings.scale_in_window_s / LEVEL_S))
    fixed = trace.peak_gpus * hours
    return {
        "label": "simulated",
        "policy": trial.policy,
        **trial.to_dict(),
        "hours": hours,
        "fixed_peak_gpus": trace.peak_gpus,
        "fixed_peak_gpu_hours": fixed,
        "saving": None if unknown else 1 - trial.gpu_hours / fixed,
        "why_no_saving": unknown,
        "usd": trial.gpu_hours * usd_per_hour,
        "fixed_peak_usd": fixed * usd_per_hour,
        "least_launches": least[0],
        "least_terminations": least[1],
        "mean_gpus": trial.gpu_hours / hours,
        "demand_gpu_hours": float(trace.demand.mean()) * hours,
    }


def why_no_saving(span_s: float, settings: Settings) -> str | None:
    """Why a trace of that length tells nothing of what scaling saves; None: it does.

    Until a first GPU has booted and a first one may have gone, the fleet is the one that it began with.
    """
    least_s = settings.boot_s + settings.scale_in_window_s
    if span_s >= least_s:
        return None
    boot, window = (format_duration(s * NS_PER_S) for s in (settings.boot_s, settings.scale_in_window_s))
    took = f"the trace lasts {format_duration(span_s * NS_PER_S)}"
    return f"{took}, less than a GPU takes to boot ({boot}) and to be let go again ({window})"


def variants(name: str, settings: Settings, work: Workload, peak_gpus: int) -> list[tuple[str, Settings]]:
    """Settings under which a policy is tried in a comparison, with what tells them apart.

    The rules that count requests have no setting that fits every model, so they get theirs from the SLO and from the
    batch that a GPU runs at the peak, over a range on both sides of what a hand calculation gives. Each is tried with
    its source's own times and with others that suit it here: at once up, and down after the default policy's window.
    Its source's defaults are among them.
    """
    if name == "load_proportional":
        return [("", settings)]
    if name == "fixed_peak":
        sizes = sorted({max(1, round(peak_gpus * share)) for share in (1.0, 0.9, 0.8, 0.7, 0.6)}, reverse=True)
        return [(f"{n} GPUs", replace(settings, fixed_gpus=n)) for n in sizes]
    if name == "gpu_utilization":
        return [
            (f"{share:.0%}, tolerance {off:.2g}", replace(settings, target_utilization=share, tolerance=off))
            for off in (settings.tolerance, 0.02)
            for share in (0.55, 0.6, 0.65, 0.7, 0.75)
        ]
    slo_s = min(model.slo_ns for model in work.models) / NS_PER_S
    if name == "dask_adaptive":
        found = [(slo_s * share, n) for n in (settings.wait_count, 30) for share in (0.5, 0.6, 0.7, 0.8)]
        return [
            (f"{s:.3g} s, {n} looks", replace(settings, target_duration_s=s, wait_count=n))
            for s, n in [(settings.target_duration_s, settings.wait_count), *found]
        ]
    if name == "ray_ongoing":
        # By Little's law a busy GPU has its rate times the time that a request stays, somewhat below the SLO.
        cost_s = max(gpu_seconds_per_request(m.profile_on(GPU).latency_ns(), m.slo_ns, 1e7) for m in work.models)
        busy = slo_s / cost_s
        own = (settings.upscale_delay_s, settings.downscale_delay_s)
        times = ((0.0, settings.downscale_delay_s), (0.0, settings.scale_in_window_s))
        tried = [(busy * share, *delays) for delays in times for share in (0.45, 0.5, 0.55, 0.6, 0.65)]
        return [
            (
                f"{n:.3g}, up {up:.0f} s, down {down:.0f} s",
                replace(settings, target_ongoing=n, upscale_delay_s=up, downscale_delay_s=down),
            )
            for n, up, down in [(settings.target_ongoing, *own), *tried]
        ]
    raise KeyError(name)


@dataclass(frozen=True)
class Job:
    """One trial, as a process can run it: it reads the trace by itself."""

    path: str
    read: dict[str, Any]
    policy: str
    settings: Settings
    cloud: FleetModel
    start_gpus: int
    tick_s: int
    seed: int
    memory: Memory


def run_job(job: Job) -> Trial:
    work = read_workload(job.path, **job.read)
    return run_trial(
        work,
        job.policy,
        POLICIES[job.policy],
        job.settings,
        job.cloud,
        start_gpus=job.settings.fixed_gpus if job.policy == "fixed_peak" else job.start_gpus,
        tick_s=job.tick_s,
        seed=job.seed,
        memory=job.memory,
    )


def compare(
    jobs: Sequence[tuple[str, Job]], *, processes: int | None = None, on_progress: OnProgress = no_progress
) -> list[tuple[str, Trial]]:
    """Run trials side by side; of each the text that tells its settings, and what came of it."""
    trials = run_all(run_job, [job for _, job in jobs], [1.0] * len(jobs), processes=processes, on_progress=on_progress)
    return [(text, trial) for (text, _), trial in zip(jobs, trials, strict=True)]


def best(found: Iterable[tuple[str, Trial]], attainment: float) -> tuple[str, Trial]:
    """The trial of the fewest GPU-hours among those that attain so much; where none does, that which attains most."""
    trials = list(found)
    cheapest = cheapest_of(trials, attainment)
    return cheapest if cheapest is not None else max(trials, key=lambda entry: entry[1].attainment)


def cheapest_of(found: Iterable[tuple[str, Trial]], attainment: float) -> tuple[str, Trial] | None:
    """The trial of the fewest GPU-hours among those that attain so much, if any does."""
    good = [entry for entry in found if entry[1].attainment >= attainment]
    return min(good, key=lambda entry: entry[1].gpu_hours, default=None)
