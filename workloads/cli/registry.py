"""Lists the commands of this package by purpose, for the entry point group ``symphony_cli``."""

from __future__ import annotations

import click

from symphony_dask.cli.command_group import COMPARE, SCALE, SERVE, TRACES
from workloads.cli.analysis.explain import explain
from workloads.cli.analysis.plan import plan
from workloads.cli.analysis.report import report
from workloads.cli.analysis.verify import verify
from workloads.cli.analysis.whatif import whatif
from workloads.cli.autoscale_simulate import simulate as autoscale_simulate
from workloads.cli.bench.group import bench
from workloads.cli.bound import bound
from workloads.cli.compare import compare
from workloads.cli.demo import demo
from workloads.cli.goodput import goodput
from workloads.cli.replay import replay
from workloads.cli.simulate import simulate
from workloads.cli.soak import soak
from workloads.cli.trace.group import trace

#: Merged with the group of the package ``autoscale``.
_autoscale = click.Group("autoscale", commands=[autoscale_simulate])

COMMANDS = {
    SERVE: [demo],
    SCALE: [_autoscale, plan],
    TRACES: [explain, replay, report, simulate, trace, verify],
    COMPARE: [bench, bound, compare, goodput, soak, whatif],
}
