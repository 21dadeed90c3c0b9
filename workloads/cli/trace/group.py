"""Groups the commands on traces: ``symphony trace``."""

from __future__ import annotations

import click

from workloads.cli.trace.diurnal import diurnal
from workloads.cli.trace.import_trace import import_
from workloads.cli.trace.info import info
from workloads.cli.trace.mix import mix
from workloads.cli.trace.scale import scale
from workloads.cli.trace.slice_trace import slice_
from workloads.cli.trace.synth import synth
from workloads.cli.trace.validate import validate


@click.group()
def trace() -> None:
    """Import, inspect, change and make traces of requests.

    A TRACE is a run folder (also a recorded run) or a Parquet file of requests, local or s3://BUCKET/FOLDER; OUT is a
    new run folder. Durations are written 25ms, 1.5s, 2h.
    """


for command in (diurnal, import_, info, mix, scale, slice_, synth, validate):
    trace.add_command(command)
