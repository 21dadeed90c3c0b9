"""`symphony autoscale simulate`: a policy on a trace, under virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.partial_files import write_whole
from symphony_dask.cli.serve import command, json_option, note_partial, print_json

if TYPE_CHECKING:
    from workloads.policy_trials.trial import Trial

POLICY_NAMES = ("load_proportional", "dask_adaptive", "ray_ongoing", "gpu_utilization", "fixed_peak")

_HEADS = (
    "policy", "settings", "GPU-hours", "saving", "attainment", "missed", "launches", "terminations", "USD",
)  # fmt: skip


@click.command()
@click.argument("path", metavar="TRACE", type=click.Path(exists=True))
@click.option("--policy", type=click.Choice(POLICY_NAMES), default="load_proportional", show_default=True)
@click.option("--boot", default="120s", show_default=True, help="From a launch until the GPU serves, on average.")
@click.option("--boot-spread", default=0.0, show_default=True, help="Standard deviation of that, relative to it.")
@click.option("--capacity-errors", default=0.0, show_default=True, help="Probability that a launch fails.")
@click.option("--spot-kills", default=0.0, show_default=True, help="Of each GPU that serves, an hour.")
@click.option("--profile", "profile_text", help='l(b) of every model, "alpha,beta" in ms; by default the trace\'s own.')
@click.option("--slo", help="Of every model and request; by default the trace's own.")
@click.option("--gpu-class", default="g4dn.xlarge", show_default=True, help="What is rented, for its price.")
@click.option("--price", type=float, help="USD an hour of a GPU, in place of the table's.")
@click.option("--set", "choices", multiple=True, metavar="NAME=VALUE", help="A setting of the policy, as in Settings.")
@click.option("--learn", "folders", multiple=True, type=click.Path(exists=True), help="A recorded run to learn from.")
@click.option("--tick", default="10s", show_default=True, help="How often the policy decides.")
@click.option("--compare", is_flag=True, help="All policies, each under several settings; the best of each is shown.")
@click.option("--attainment", default=0.99, show_default=True, help="With --compare: what the best must attain.")
@click.option("--processes", type=int, help="With --compare: by default one a core.")
@click.option("--out", type=click.Path(dir_okay=False), help="A page (.html) of GPUs over time against demand.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--seed", default=0, show_default=True, help="Of boot times, failed launches and kills.")
@json_option
@command
def simulate(path: str, markdown: bool, out: str | None, as_json: bool, **options: Any) -> None:
    """Try a scaling policy on TRACE: simulated GPUs, virtual time, and a fleet that takes time to boot.

    The fleet begins with what the first minute takes. "saving" is of the GPU-hours of a fixed fleet for the busiest ten
    seconds. "least_launches" are those of a fleet that knows the future and keeps no GPU idle for longer than the
    scale-in window (docs/autoscaling.md).

    With --compare there are up to two rows for each other policy: the fewest GPU-hours that attain what is asked, and
    the fewest with no more missed than load_proportional.
    """
    from workloads.compare.tables import NONE, Table, significant

    note_partial(path)
    found, trials = _run(path, **options)
    rows = [
        (
            r["policy"], r["settings"], significant(r["gpu_hours"]),
            NONE if r["saving"] is None else f"{r['saving']:.1%}", f"{r['attainment']:.3%}",
            f"{r['requests'] - r['ok']:,}", str(r["launches"]), str(r["terminations"]), significant(r["usd"], 2),
        )
        for r in found["rows"]
    ]  # fmt: skip
    title = f"{Path(path).name}, simulated, boot {options['boot']}"
    if out is not None:
        from workloads.policy_trials.trial_page import page

        write_whole(out, page(title, _HEADS, rows, trials))
        found["page"] = out
    if as_json:
        print_json(found if options["compare"] else {**found["rows"][0], **({"page": out} if out else {})})
        return
    from rich.console import Console

    first = found["rows"][0]
    note = (
        f"fixed peak: {first['fixed_peak_gpus']} GPUs, {significant(first['fixed_peak_gpu_hours'])} GPU-hours; "
        f"least launches {first['least_launches']}, terminations {first['least_terminations']}"
    )
    if options["compare"]:
        others = [trial for trial in found["trials"] if trial["policy"] != first["policy"]]
        good = [t for t in others if t["gpu_hours"] <= first["gpu_hours"] and t["ok"] >= first["ok"]]
        note += f"; of {len(others)} trials of the others {len(good)} took no more GPU-hours and missed no more"
    if first["why_no_saving"]:
        note += f"; no saving can be told: {first['why_no_saving']}; take a longer trace, or a shorter --boot"
        note += " and --set scale_in_window_s=SECONDS"
    table = Table(title, _HEADS, rows, left=2, note=note)
    if markdown:
        click.echo(table.markdown())
    else:
        Console(width=140).print(table.rich())


def _run(
    path: str,
    *,
    policy: str,
    boot: str,
    boot_spread: float,
    capacity_errors: float,
    spot_kills: float,
    profile_text: str | None,
    slo: str | None,
    gpu_class: str,
    price: float | None,
    choices: tuple[str, ...],
    folders: tuple[str, ...],
    tick: str,
    compare: bool,
    attainment: float,
    processes: int | None,
    seed: int,
) -> tuple[dict[str, Any], list[tuple[str, Trial]]]:
    from dataclasses import replace

    from autoscale.policies.decision import Memory
    from symphony_dask.engine.latency_profile import LatencyProfile
    from symphony_dask.errors import BadInput
    from symphony_dask.units import NS_PER_S, parse_duration_ns
    from workloads.compare.policies import compile_policies
    from workloads.policy_trials import assess
    from workloads.policy_trials.learn import learn
    from workloads.policy_trials.trial import FleetModel
    from workloads.simulation.workload import DEFAULT_PROFILE, read_workload

    usd = _price(gpu_class) if price is None else price
    boot_s = parse_duration_ns(boot, "--boot") / NS_PER_S
    tick_ns = parse_duration_ns(tick, "--tick")
    if tick_ns % NS_PER_S:
        raise BadInput(f"--tick {tick}: give whole seconds")
    try:
        profile = None if profile_text is None else LatencyProfile.parse(profile_text)
    except ValueError as error:
        raise BadInput(str(error)) from None
    slo_ns = None if slo is None else parse_duration_ns(slo, "--slo")
    read: dict[str, Any] = {"profile": profile, "slo_ns": slo_ns}
    work = read_workload(path, **read)
    if any(model.profile is DEFAULT_PROFILE for model in work.models):
        click.echo("no profile is known: assuming ResNet-50's (--profile ALPHA,BETA gives another)", err=True)
    trace = assess.asked(work)
    settings = _settings(choices, boot_s, trace.peak_gpus)
    memory = learn(folders, settings) if folders else Memory()
    cloud = FleetModel(boot_s, boot_spread, capacity_errors, spot_kills)
    job = assess.Job(path, read, policy, settings, cloud, trace.first_gpus, tick_ns // NS_PER_S, seed, memory)
    compile_policies(["adaptive"])
    rows: list[dict[str, Any]] = []
    shown: list[tuple[str, Trial]] = []
    trials: list[dict[str, Any]] = []
    names = POLICY_NAMES if compare else (policy,)
    for name in names:
        tried = assess.variants(name, settings, work, trace.peak_gpus) if compare else [("", settings)]
        jobs = [(text, replace(job, policy=name, settings=chosen)) for text, chosen in tried]
        found = assess.compare(jobs, processes=processes if compare else 1, on_progress=_progress(name))
        chosen = [assess.best(found, attainment)]
        alike = assess.cheapest_of(found, shown[0][1].attainment) if shown else None
        if alike is not None and alike[0] != chosen[0][0]:
            chosen.append(alike)
        for text, trial in chosen:
            rows.append({"settings": text, **assess.figures(trial, trace, settings, usd)})
            shown.append((f"{name} {text}".strip(), trial))
        trials += [{"settings": text, **assess.figures(trial, trace, settings, usd)} for text, trial in found]
    return {"label": "simulated", "rows": rows, **({"trials": trials} if compare else {})}, shown


def _settings(choices: tuple[str, ...], boot_s: float, peak_gpus: int) -> Any:
    """``Settings`` with what was written NAME=VALUE; raises ``BadInput``."""
    from dataclasses import fields, replace

    from autoscale.policies.decision import Settings
    from symphony_dask.errors import BadInput

    settings = Settings(boot_s=boot_s, maximum=2 * peak_gpus + 8, fixed_gpus=peak_gpus)
    known = {f.name: type(getattr(settings, f.name)) for f in fields(Settings)}
    for text in choices:
        name, _, value = text.partition("=")
        if name not in known:
            raise BadInput(f"--set {text}: no setting {name!r}; there are {', '.join(known)}")
        try:
            kind = known[name]
            parsed = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            raise BadInput(f"--set {text}: {value!r} is no {known[name].__name__}") from None
        settings = replace(settings, **{name: parsed})
    return settings


def _price(gpu_class: str) -> float:
    """USD an hour of one GPU, by the dated table; raises ``BadInput``."""
    from autoscale.providers.prices import prices
    from symphony_dask.errors import BadInput

    instance = prices().find(gpu_class)
    if instance is None:
        raise BadInput(f"the price of GPU class {gpu_class!r} is unknown: give --price USD an hour")
    return instance.usd_per_hour / instance.gpus


def _progress(name: str) -> Any:
    def show(done: float, total: float) -> None:
        if done:
            click.echo(f"{name}: {done:.0f} of {total:.0f} trials", err=True)

    return show
