"""Groups the benchmarks: ``symphony bench``."""

from __future__ import annotations

import click

from workloads.cli.bench.engine import engine
from workloads.cli.bench.fidelity import fidelity
from workloads.cli.bench.gateway import gateway
from workloads.cli.bench.gpu import gpu
from workloads.cli.bench.graph import graph
from workloads.cli.bench.live import live
from workloads.cli.bench.loadgen import loadgen
from workloads.cli.bench.memory import memory
from workloads.cli.bench.overload import overload
from workloads.cli.bench.peers import peers
from workloads.cli.bench.pipeline import pipeline
from workloads.cli.bench.placement import placement
from workloads.cli.bench.recording import recording


@click.group()
def bench() -> None:
    """Measure Symphony on this machine, and beside others.

    Most of these start a cluster of their own with emulated GPUs, which take the time of a batch and compute nothing.
    """


for command in (
    engine, fidelity, gateway, gpu, graph, live, loadgen, memory, overload, peers, pipeline, placement, recording,
):  # fmt: skip
    bench.add_command(command)
