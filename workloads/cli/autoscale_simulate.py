"""``symphony autoscale simulate``: tries a scaling policy on a trace, under virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option
from symphony_dask.cli.output import note_partial, print_json
from symphony_dask.cli.partial_files import write_whole
from workloads.cli.autoscale_trials import POLICY_NAMES, Found, TrialOptions, tried
from workloads.cli.options import PROFILE

if TYPE_CHECKING:
    from workloads.compare.tables import Table
    from workloads.policy_trials.trial import Trial

_HEADS = (
    "policy", "settings", "GPU-hours", "saving", "attainment", "missed", "launches", "terminations", "USD",
)  # fmt: skip


@click.command()
@click.argument("path", metavar="TRACE", type=click.Path(exists=True))
@click.option(
    "--policy",
    type=click.Choice(POLICY_NAMES),
    default="load_proportional",
    show_default=True,
    help="Scale by this policy.",
)
@click.option(
    "--boot",
    default="120s",
    show_default=True,
    metavar="DURATION",
    help="Let a GPU serve this long after its launch, on average.",
)
@click.option(
    "--boot-spread",
    default=0.0,
    show_default=True,
    help="Vary the boot time by this standard deviation, as a part of it.",
)
@click.option("--capacity-errors", default=0.0, show_default=True, help="Let launches fail with this probability.")
@click.option("--spot-kills", default=0.0, show_default=True, help="End each GPU this many times an hour, on average.")
@click.option(
    "--profile",
    "profile_text",
    help=f"Take the times of batches from this profile: {PROFILE}. By default, the trace's own.",
)
@click.option(
    "--slo", metavar="DURATION", help="Finish each request within this latency objective. By default, the trace's own."
)
@click.option("--gpu-class", default="g4dn.xlarge", show_default=True, help="Rent GPUs of this class, for its price.")
@click.option("--price", type=float, help="Pay this many USD an hour for a GPU, in place of the table's price.")
@click.option(
    "--set", "choices", multiple=True, metavar="NAME=VALUE", help="Change this setting of the policy. Repeat it."
)
@click.option(
    "--learn", "folders", multiple=True, type=click.Path(exists=True), help="Learn from this recorded run. Repeat it."
)
@click.option("--tick", default="10s", show_default=True, metavar="DURATION", help="Let the policy decide this often.")
@click.option(
    "--compare", is_flag=True, help="Try all policies, each with several settings, and show the best of each."
)
@click.option(
    "--attainment", default=0.99, show_default=True, help="With --compare, finish this share of the requests in time."
)
@click.option(
    "--processes", type=int, help="With --compare, simulate in this many processes. By default, one for each core."
)
@click.option("--out", type=click.Path(dir_okay=False), help="Draw GPUs over time against demand to this HTML page.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--seed", default=0, show_default=True, help="Draw boot times, failed launches and ends from this seed.")
@json_option
@gathered(TrialOptions)
@command
def simulate(options: TrialOptions, markdown: bool, out: str | None, as_json: bool) -> None:
    """Try a scaling policy on a trace, by simulation.

    GPUs and time are simulated, and a fleet that takes time to boot. The fleet begins with what the first minute takes.
    "saving" is of the GPU-hours of a fixed fleet for the busiest ten seconds. "least_launches" are those of a fleet
    that knows the future and keeps no GPU idle for longer than the scale-in window (docs/autoscaling.md).

    With --compare there are up to two rows for each other policy: the fewest GPU-hours that attain what is asked, and
    the fewest with no more missed than load_proportional.
    """
    note_partial(options.path)
    found = tried(options)
    table = table_of(found, options)
    page = {} if out is None else {"page": out}
    if out is not None:
        write_page(out, table, found.shown)
    if as_json:
        print_json({**(found.to_dict() if options.compare else found.rows[0]), **page})
        return
    if markdown:
        click.echo(table.markdown())
    else:
        from rich.console import Console

        Console(width=140).print(table.rich())


def write_page(out: str, table: Table, shown: Sequence[tuple[str, Trial]]) -> None:
    from workloads.policy_trials.trial_page import page

    write_whole(out, page(table.title, _HEADS, table.rows, shown))


def table_of(found: Found, options: TrialOptions) -> Table:
    """What was found, for a person."""
    from workloads.compare.tables import NONE, Table, significant

    rows = [
        (
            r["policy"], r["settings"], significant(r["gpu_hours"]),
            NONE if r["saving"] is None else f"{r['saving']:.1%}", f"{r['attainment']:.3%}",
            f"{r['requests'] - r['ok']:,}", str(r["launches"]), str(r["terminations"]), significant(r["usd"], 2),
        )
        for r in found.rows
    ]  # fmt: skip
    title = f"{Path(options.path).name}, simulated, boot {options.boot}"
    return Table(title, _HEADS, rows, left=2, note=_note(found.rows[0], found.trials if options.compare else []))


def _note(first: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> str:
    """What stands below the table. trials: of all policies, where several were compared."""
    from workloads.compare.tables import significant

    note = (
        f"fixed peak: {first['fixed_peak_gpus']} GPUs, {significant(first['fixed_peak_gpu_hours'])} GPU-hours; "
        f"least launches {first['least_launches']}, terminations {first['least_terminations']}"
    )
    if trials:
        others = [trial for trial in trials if trial["policy"] != first["policy"]]
        good = [t for t in others if t["gpu_hours"] <= first["gpu_hours"] and t["ok"] >= first["ok"]]
        note += f"; of {len(others)} trials of the others {len(good)} took no more GPU-hours and missed no more"
    if first["why_no_saving"]:
        note += f"; no saving can be told: {first['why_no_saving']}; take a longer trace, or a shorter --boot"
        note += " and --set scale_in_window_s=SECONDS"
    return note
