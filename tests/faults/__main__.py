"""``python -m tests.faults``: runs of faults from seeds, and a table of what a user saw.

python -m tests.faults --seeds 0:500            # one line for each run that broke a promise, a table at the end
python -m tests.faults --seeds 17 --shrink      # that run once more, with as few of its faults as still break one
python -m tests.faults --plan '{"seed": ...}'   # a plan as it was printed
python -m tests.faults --kind kill-worker       # each kind that is named, alone, --times times
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from tests.faults.harness import LOADS, Bed, Run
from tests.faults.promises import broken, needs_other_workers
from workloads.faults.kinds import KINDS, Fault
from workloads.faults.plan import Plan, draw, shrink


def judge(bed: Bed, plan: Plan) -> tuple[Run, list[str]]:
    """Carry out a plan; what broke. The recording is kept where something did."""
    run = bed.run(plan)
    found = broken(run, bed)
    if not found:
        bed.remove(run)
    if needs_other_workers(run):
        bed.renew_workers()
    return run, found


def fails(bed: Bed, plan: Plan) -> bool:
    """Whether a plan breaks a promise in one of three runs."""
    return any(judge(bed, plan)[1] for _ in range(3))


class Table:
    """What users saw, by kind, of runs in which that was the only one."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.alone: Counter[str] = Counter()
        self.seen: dict[str, dict[str, Counter[str]]] = {}
        self.back_s: dict[str, list[float]] = {}

    def add(self, run: Run) -> None:
        self.runs.update(run.kinds)
        if len(run.kinds) != 1:
            return
        (kind,) = run.kinds
        self.alone[kind] += 1
        seen = self.seen.setdefault(kind, {load.model: Counter() for load in LOADS} | {"http": Counter()})
        for load in LOADS:
            seen[load.model].update(run.errors(load.model))
        seen["http"].update(asked.status for asked in run.asked)
        if run.back_s is not None:
            self.back_s.setdefault(kind, []).append(run.back_s)

    def to_dict(self) -> dict[str, Any]:
        return {
            kind: {
                "what": KINDS[kind].words,
                "runs": self.runs[kind],
                "alone": self.alone[kind],
                "seen": {what: dict(counts.most_common()) for what, counts in self.seen.get(kind, {}).items()},
                "back_s_most": max(self.back_s.get(kind, [0.0])),
            }
            for kind in KINDS
            if self.runs[kind]
        }


@click.command()
@click.option("--seeds", help="A seed, or FIRST:END.")
@click.option("--plan", "plan_text", help="A plan as JSON.")
@click.option("--kind", "kinds", multiple=True, help="Kinds of faults, or 'all', each alone.")
@click.option("--times", default=1, show_default=True, help="With --kind, how often each.")
@click.option("--minutes", default=1e9, help="End after so long.")
@click.option("--shrink", "smaller", is_flag=True, help="Look for the fewest faults that still break a promise.")
@click.option("--repeats", default=0, show_default=True, help="Make a run that broke a promise so often again.")
@click.option("--workers", default=2, show_default=True)
def main(
    seeds: str | None, plan_text: str | None, kinds: tuple[str, ...], times: int, minutes: float, smaller: bool,
    repeats: int, workers: int,
) -> None:  # fmt: skip
    """Carry out plans. With --repeats, one counts as broken that breaks a promise again: on a machine that is busy with
    other things, answers come late by themselves, and goodput is not back.
    """
    table, began, n, failures, once = Table(), time.monotonic(), 0, [], 0
    bed = Bed(workers).__enter__()
    try:
        for plan in plans(seeds, plan_text, kinds, times):
            if time.monotonic() - began > 60 * minutes:
                break
            try:
                run, found = judge(bed, plan)
            except Exception as error:  # the bed itself: make another
                click.echo(f"{plan.to_json()}: the run could not be carried out: {error!r}", err=True)
                failures.append({"plan": plan.to_json(), "broken": [f"not carried out: {error!r}"]})
                click.echo(bed.cluster.logs()[-6000:], err=True)
                bed.__exit__()
                bed = Bed(workers).__enter__()
                continue
            n += 1
            table.add(run)
            if found and repeats:
                click.echo(f"{plan.to_json()}: {found[0]}; once more", err=True)
                if not any(judge(bed, plan)[1] for _ in range(repeats)):
                    found, once = [], once + 1
            if found:
                failures.append({"plan": plan.to_json(), "broken": found[:5]})
                click.echo(f"{plan.to_json()}: {len(found)} broken\n  " + "\n  ".join(found[:8]), err=True)
                if smaller:
                    plan = shrink(plan, partial(fails, bed))
                    click.echo(f"  as few as: {plan.to_json()}", err=True)
            if n % 10 == 0 or plan_text or len(run.kinds) == 1:
                took = f"{run.seconds:.1f} s, back after {run.back_s}"
                click.echo(f"{n} runs, {len(failures)} broken; the last, {run.kinds}: {took}", err=True)
    finally:
        bed.__exit__()
    seconds = time.monotonic() - began
    found_out = {"runs": n, "broken": failures, "broken_once": once, "seconds": seconds, "kinds": table.to_dict()}
    click.echo(json.dumps(found_out, indent=1))
    sys.exit(1 if failures else 0)


def plans(seeds: str | None, plan_text: str | None, kinds: tuple[str, ...], times: int) -> Iterator[Plan]:
    if plan_text:
        yield Plan.from_json(plan_text)
    if seeds:
        first, _, end = seeds.partition(":")
        yield from (draw(seed) for seed in range(int(first), int(end or int(first) + 1)))
    for kind in KINDS if "all" in kinds else kinds:
        for i in range(times):
            yield Plan(i, "eager", (Fault(kind, 0.1, 1.0, i),))


if __name__ == "__main__":
    main()
