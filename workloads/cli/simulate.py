"""``symphony simulate``: serves a trace's requests on simulated GPUs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.options import gathered, json_option, optional_duration_ns
from symphony_dask.cli.output import note_partial, print_json, print_values
from symphony_dask.errors import BadInput
from workloads.cli.options import (
    fleet_of,
    gpus_option,
    policy_option,
    prefer_option,
    profiles_option,
    require_profiles,
    trace_slo_option,
)  # fmt: skip


@dataclass(frozen=True)
class SimulateOptions:
    """The trace, the fleet and how it is served."""

    path: str
    gpus_text: str
    policy: str
    prefer: str | None
    slo: str | None
    profile_texts: tuple[str, ...]
    noise: float
    seed: int
    folder: str | None


@click.command()
@click.argument("path", metavar="TRACE")
@gpus_option
@policy_option
@prefer_option
@trace_slo_option
@profiles_option(required=False)
@click.option(
    "--noise", default=0.0, help="Vary the time of each batch at random, by this standard deviation as a part of it."
)
@click.option("--seed", default=0, help="Draw the noise from this seed.")
@click.option("--folder", type=click.Path(), help="Write the tables of the simulated run to this folder.")
@json_option
@gathered(SimulateOptions)
@command
def simulate(options: SimulateOptions, as_json: bool) -> None:
    """Serve a trace's requests on simulated GPUs.

    Time is simulated too. With --folder, "digest" is a hash of all rows of all tables: it is the same wherever the
    same simulation runs.
    """
    found = simulated(options)
    if as_json:
        print_json(found)
    else:
        print_values(found, width=12)


def simulated(options: SimulateOptions) -> dict[str, Any]:
    """What became of the requests, and how long reading and simulating took; raises ``BadInput``."""
    from workloads.compare.policies import batching_of, check_size, compile_policies, scheduler
    from workloads.simulation.workload import read_workload

    batching = batching_of(options.prefer, [options.policy])
    gpus, profile, by_class = fleet_of(options.gpus_text, options.profile_texts)
    note_partial(options.path)
    began = time.perf_counter()
    work = read_workload(options.path, profile, optional_duration_ns(options.slo, "slo"), by_class)
    read_s = time.perf_counter() - began
    if not isinstance(gpus, int):
        require_profiles(gpus, profile, set.intersection(*(set(model.profiles) for model in work.models)))
    check_size(options.policy, len(work.arrivals_ns), gpus, len(work.models))
    compile_policies([options.policy])  # not simulation, so not timed
    began = time.perf_counter()
    result = scheduler(options.policy, slos_ns=work.slos_ns, noise=options.noise, seed=options.seed)(
        [replace(model, batching=batching) for model in work.models], gpus, work.arrivals_ns, work.choices
    )
    simulated_hz = len(work.arrivals_ns) / (time.perf_counter() - began)
    found = {**result.to_dict(), "simulated_hz": simulated_hz, "read_s": read_s}
    if options.folder is not None:
        del work  # a long trace leaves little room for more
        found |= _recorded(result, options, options.folder)
    return found


def _recorded(result: object, options: SimulateOptions, folder: str) -> dict[str, Any]:
    """Write the tables of the run; gives where they are and their hashes."""
    from workloads.simulation.record import record
    from workloads.simulation.simulate import SimulatedRun
    from workloads.traces.digest import digest, file_hashes

    if not isinstance(result, SimulatedRun):
        raise BadInput(f"policy {options.policy!r} is a baseline, which keeps no tables: leave --folder out")
    record(result, folder, trace=options.path, prefer=options.prefer)
    return {"run": folder, "digest": digest(folder), "sha256": file_hashes(folder)}
