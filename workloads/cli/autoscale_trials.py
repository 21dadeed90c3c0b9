"""Runs what ``symphony autoscale simulate`` asks for: one trial of a policy, or trials of all policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.options import optional_duration_ns
from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from autoscale.policies.decision import Settings
    from symphony_dask.engine.latency_profile import LatencyProfile
    from workloads.policy_trials.assess import Job
    from workloads.policy_trials.trial import FleetModel, Trial
    from workloads.simulation.workload import Workload

POLICY_NAMES = ("load_proportional", "dask_adaptive", "ray_ongoing", "gpu_utilization", "fixed_peak")


@dataclass(frozen=True)
class TrialOptions:
    """The trace, the policy and the cloud, as the command's options give them."""

    path: str
    policy: str
    boot: str
    boot_spread: float
    capacity_errors: float
    spot_kills: float
    profile_text: str | None
    slo: str | None
    gpu_class: str
    price: float | None
    choices: tuple[str, ...]
    folders: tuple[str, ...]
    tick: str
    compare: bool
    attainment: float
    processes: int | None
    seed: int

    def usd_per_hour(self) -> float:
        """Of one GPU, by the dated table where no price is given; raises ``BadInput``."""
        from autoscale.providers.prices import prices

        if self.price is not None:
            return self.price
        instance = prices().find(self.gpu_class)
        if instance is None:
            raise BadInput(f"the price of GPU class {self.gpu_class!r} is unknown: give --price USD an hour")
        return instance.usd_per_hour / instance.gpus

    def cloud(self) -> FleetModel:
        """How instances come and go; raises ``BadInput``."""
        from symphony_dask.units import NS_PER_S, parse_duration_ns
        from workloads.policy_trials.trial import FleetModel

        boot_s = parse_duration_ns(self.boot, "--boot") / NS_PER_S
        return FleetModel(boot_s, self.boot_spread, self.capacity_errors, self.spot_kills)

    def tick_s(self) -> int:
        """Raises ``BadInput`` unless it is in whole seconds."""
        from symphony_dask.units import NS_PER_S, parse_duration_ns

        tick_ns = parse_duration_ns(self.tick, "--tick")
        if tick_ns % NS_PER_S:
            raise BadInput(f"--tick {self.tick}: give whole seconds")
        return tick_ns // NS_PER_S

    def profile(self) -> LatencyProfile | None:
        """Raises ``BadInput`` where it cannot be read."""
        from symphony_dask.engine.latency_profile import LatencyProfile

        try:
            return None if self.profile_text is None else LatencyProfile.parse(self.profile_text)
        except ValueError as error:
            raise BadInput(str(error)) from None

    def settings(self, boot_s: float, peak_gpus: int) -> Settings:
        """Of the policy, with what was written NAME=VALUE; raises ``BadInput``."""
        from autoscale.policies.decision import Settings

        settings = Settings(boot_s=boot_s, maximum=2 * peak_gpus + 8, fixed_gpus=peak_gpus)
        known = {f.name: type(getattr(settings, f.name)) for f in fields(Settings)}
        for text in self.choices:
            name, _, value = text.partition("=")
            if name not in known:
                raise BadInput(f"--set {text}: no setting {name!r}; there are {', '.join(known)}")
            try:
                kind = known[name]
                parsed: Any = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                raise BadInput(f"--set {text}: {value!r} is no {known[name].__name__}") from None
            settings = replace(settings, **{name: parsed})
        return settings


@dataclass(frozen=True)
class Found:
    """rows: of what is shown, as JSON; shown: the same trials by name; trials: all that were run, as JSON."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    shown: list[tuple[str, Trial]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"label": "simulated", "rows": self.rows, "trials": self.trials}


def tried(options: TrialOptions) -> Found:
    """Run the trials; raises ``BadInput``."""
    from workloads.compare.policies import compile_policies
    from workloads.policy_trials import assess
    from workloads.simulation.workload import DEFAULT_PROFILE, read_workload

    usd, cloud, tick_s = options.usd_per_hour(), options.cloud(), options.tick_s()
    read: dict[str, Any] = {"profile": options.profile(), "slo_ns": optional_duration_ns(options.slo, "--slo")}
    work = read_workload(options.path, **read)
    if any(model.profile is DEFAULT_PROFILE for model in work.models):
        click.echo("no profile is known: assuming ResNet-50's (--profile ALPHA,BETA gives another)", err=True)
    trace = assess.asked(work)
    settings = options.settings(cloud.boot_s, trace.peak_gpus)
    memory = _learned(options, settings)
    job = assess.Job(
        options.path, read, options.policy, settings, cloud, trace.first_gpus, tick_s, options.seed, memory
    )
    compile_policies(["adaptive"])
    found = Found()
    for name in POLICY_NAMES if options.compare else (options.policy,):
        all_trials, best = _trials(options, replace(job, policy=name), work, trace.peak_gpus, found.shown)
        found.rows.extend({"settings": text, **assess.figures(trial, trace, settings, usd)} for text, trial in best)
        found.shown.extend((f"{name} {text}".strip(), trial) for text, trial in best)
        found.trials.extend(
            {"settings": text, **assess.figures(trial, trace, settings, usd)} for text, trial in all_trials
        )
    return found


def _learned(options: TrialOptions, settings: Settings) -> Any:
    from autoscale.policies.decision import Memory
    from workloads.policy_trials.learn import learn

    return learn(options.folders, settings) if options.folders else Memory()


def _trials(
    options: TrialOptions, job: Job, work: Workload, peak_gpus: int, shown: list[tuple[str, Trial]]
) -> tuple[list[tuple[str, Trial]], list[tuple[str, Trial]]]:
    """All trials of one policy by their settings, and of these one or two to show.

    shown: of the policies before; one that attains as much as the first of them is shown too.
    """
    from workloads.policy_trials import assess

    variants = assess.variants(job.policy, job.settings, work, peak_gpus) if options.compare else [("", job.settings)]
    jobs = [(text, replace(job, settings=settings)) for text, settings in variants]
    processes = options.processes if options.compare else 1
    found = assess.compare(jobs, processes=processes, on_progress=_progress(job.policy))
    best = [assess.best(found, options.attainment)]
    alike = assess.cheapest_of(found, shown[0][1].attainment) if shown else None
    if alike is not None and alike[0] != best[0][0]:
        best.append(alike)
    return found, best


def _progress(name: str) -> Callable[[float, float], None]:
    def show(done: float, total: float) -> None:
        if done:
            click.echo(f"{name}: {done:.0f} of {total:.0f} trials", err=True)

    return show
