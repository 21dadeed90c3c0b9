"""Commands of the serving layer: status, profile, apply and gateway."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

from symphony_dask.cli.error_line import debugging, in_one_line, is_panic
from symphony_dask.cli.partial_files import farewell, interruptible, interruption
from symphony_dask.cli.scheduler_address import check, connected, scheduler_option

P = ParamSpec("P")


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Have the command end by an error or a signal in one line that says what was wrong, or what is left.

    The exit status is then 1, 130 (Ctrl-C) or 143 (SIGTERM). With SYMPHONY_DEBUG set, errors are raised on.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with interruptible():
                function(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own, and a reader of the output that wants no more
        except BaseException as error:
            if debugging() or not (isinstance(error, (Exception, KeyboardInterrupt)) or is_panic(error)):
                raise
            interrupted = interruption(error)
            if interrupted is None:
                raise click.ClickException(in_one_line(error)) from error
            text, status = farewell(interrupted)
            click.echo(text, err=True)
            raise SystemExit(status) from None

    return run


def note_partial(*paths: str) -> dict[str, str]:
    """Say on standard error which of the runs at ``paths`` are partial, and why; gives these by path."""
    from symphony_dask.errors import SymphonyError
    from symphony_dask.trace import open_run
    from symphony_dask.trace.folder import is_file, place

    found = {}
    for path in paths:
        try:
            why = None if is_file(place(path)) else open_run(path).partial
        except SymphonyError:  # the command itself will say
            continue
        if why is not None:
            found[path] = why
            click.echo(f"{path} is partial: {why}", err=True)
    return found


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value))


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


@click.command()
@scheduler_option()
@json_option
@command
def status(scheduler: str, as_json: bool) -> None:
    """Show the models, workers and outcome counts of a cluster, and its fleet as a controller last saw it."""
    from symphony_dask.units import format_duration

    with connected(scheduler) as serving:
        found = serving.status()
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.table import Table

    models = Table(title=f"Models (policy {found['policy']})")
    for column in ("model", "SLO", "queued", "target batch", "mean batch", "rate", "outcomes"):
        models.add_column(column, justify="left" if column in ("model", "outcomes") else "right")
    for name, m in found["models"].items():
        outcomes = ", ".join(f"{k} {v:,}" for k, v in m["outcomes"].items() if v) or "none"
        mean = "-" if m["mean_batch"] is None else f"{m['mean_batch']:.1f}"
        rate = f"{m['rate_hz']:,.0f}/s"
        models.add_row(
            name, format_duration(m["slo_ns"]), str(m["queued"]), str(m["target_batch"]), mean, rate, outcomes
        )
    workers = Table(title="Workers")
    for column in ("worker", "GPU class", "slots", "in flight", "control latency", "state"):
        workers.add_column(column)
    for address, w in found["workers"].items():
        if "slots" not in w:  # it has just gone
            continue
        takes = "serving" if w["answering"] else "stalled" if w["serving"] else "loading"
        state = w.get("error") or ("draining" if w["draining"] else takes)
        latency = format_duration(w["control_ns"])
        workers.add_row(address, w["gpu_class"], str(w["slots"]), str(w["in_flight"]), latency, state)
    console = Console()
    console.print(models)
    console.print(workers)
    for text in found["problems"]:
        click.echo(text)
    for key, drain in found["drains"].items():
        text = f"{drain['state']} for {drain['age_s']:.0f} s, {drain['in_flight']} batches in flight: {drain['why']}"
        click.echo(f"{key}: {text}")
    for name, fleet in found["fleets"].items():
        instances = ", ".join(f"{n} {phase}" for phase, n in fleet["instances"].items() if n) or "no instances"
        most_usd = fleet["max_usd_per_hour"]
        cost = f"{fleet['usd_per_hour']:.2f}{'' if most_usd is None else f' of {most_usd:g}'} USD an hour at most"
        click.echo(f"fleet {name}, {fleet['age_s']:.0f} s ago: {instances}; {fleet['gpus']} GPUs wanted; {cost}")
        click.echo(f"  {fleet['policy']}")
        for text in [fleet["why"], *fleet["faults"]]:
            if text:
                click.echo(f"  {text}")


@click.command()
@click.argument("model")
@click.option(
    "--example",
    "examples",
    required=True,
    multiple=True,
    help="A sample, as dtype and shape: float32:3,224,224. One for each of several inputs, as input_ids=int64:12.",
)
@click.option("--max-batch", default=128, show_default=True, help="Largest batch to measure.")
@click.option("--device", help='Where a torch model runs, such as "cuda:0"; by default a GPU if there is one.')
@click.option("--optimize", type=click.Choice(["compile", "cuda-graphs"]), help="Of a torch module, as in deploy().")
@click.option("--collate", help='"module:function" that makes a batch of samples, as in deploy().')
@json_option
@command
def profile(
    model: str,
    examples: tuple[str, ...],
    max_batch: int,
    device: str | None,
    optimize: str | None,
    collate: str | None,
    as_json: bool,
) -> None:
    """Measure l(b) of MODEL on this machine.

    MODEL is "module:attribute" of a torch module, a callable on a batch, or a loader of either.
    """
    import sys

    from symphony_dask.backends import as_spec, load
    from symphony_dask.backends.named import attribute
    from symphony_dask.client.declarations import sample_of_options
    from symphony_dask.slot.profiling import profile_runner

    sys.path.insert(0, "")
    zeros = sample_of_options(examples)
    function = attribute(collate, "collate") if collate is not None else None
    runner = load(as_spec(attribute(model), optimize, max_batch, function), device, zeros)
    measured = profile_runner(runner, zeros, max_batch)
    if as_json:
        print_json({"model": model, "label": "measured", **measured.to_dict()})
        return
    click.echo(f"l(b) = {measured.alpha_ms:.4g} ms * b + {measured.beta_ms:.4g} ms")
    for size, ms in measured.table:
        click.echo(f"  batch {size:4d}: {ms:10.3f} ms  {size / ms * 1000:10,.0f} samples/s")
    click.echo(f'deploy(..., profile="{measured.alpha_ms:.4g},{measured.beta_ms:.4g}")')


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@scheduler_option()
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also versions that take other samples, and models that pipelines ask.")
@json_option
@command
def apply(file: Path, scheduler: str, dry_run: bool, yes: bool, force: bool, as_json: bool) -> None:
    """Have a cluster serve the models that FILE declares.

    FILE is YAML. What it changes is shown first: models that are new are deployed, those that are declared otherwise
    get a new version, and those that are declared no more are undeployed. What programs deployed is left alone.
    """
    from symphony_dask.cli.apply import apply_file

    apply_file(file, scheduler, dry_run, yes, as_json, force)


@click.command()
@scheduler_option()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: everywhere.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65_535), help="0: any free port.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 64), help="That share the port.")
@click.option("--token-file", help="Bearer tokens, one a line, of which one must come with each request.")
@click.option("--tls-cert", help="Certificate (PEM) to serve HTTPS with.")
@click.option("--tls-key", help="Its key.")
@click.option("--tls-client-ca", help="CA (PEM) by which clients must have a certificate; by default they need none.")
@click.option("--scheduler-ca-file", help="CA (PEM) of a cluster with TLS; by default Dask's configuration.")
@click.option("--scheduler-cert", help="Certificate of this client of it.")
@click.option("--scheduler-key", help="Its key.")
@click.option("--max-body", default=64 << 20, show_default=True, type=click.IntRange(1), help="Of a request, bytes.")
@click.option("--max-concurrency", default=8192, show_default=True, type=click.IntRange(1), help="A process.")
@click.option("--read-timeout", default="30s", show_default=True, help="For a request's head and body to come.")
@click.option("--grace", default="10s", show_default=True, help="After SIGTERM, for what is under way.")
@click.option("--notice", default="1s", show_default=True, help="Before that: serve on, but be not ready.")
@command
def gateway(
    scheduler: str,
    host: str,
    port: int,
    processes: int,
    token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    scheduler_ca_file: str | None,
    scheduler_cert: str | None,
    scheduler_key: str | None,
    max_body: int,
    max_concurrency: int,
    read_timeout: str,
    grace: str,
    notice: str,
) -> None:
    """Serve the cluster's models over HTTP: the Open Inference Protocol v2, and TensorFlow Serving's predict.

    Runs until SIGTERM. Needs the extra "gateway" (pip install 'symphony-dask[gateway]').
    """
    import logging
    from threading import Thread

    from symphony_dask.errors import BadInput
    from symphony_dask.units import NS_PER_S, parse_duration_ns

    try:
        from symphony_dask.gateway.server import Options, run
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is not installed: pip install 'symphony-dask[gateway]'") from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    options = Options(
        scheduler=scheduler,
        host=host,
        port=port,
        processes=processes,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        scheduler_ca_file=scheduler_ca_file,
        scheduler_cert=scheduler_cert,
        scheduler_key=scheduler_key,
        max_body_bytes=max_body,
        max_concurrency=max_concurrency,
        read_timeout_s=parse_duration_ns(read_timeout, "read-timeout") / NS_PER_S,
        grace_s=parse_duration_ns(grace, "grace") / NS_PER_S,
        notice_s=parse_duration_ns(notice, "notice") / NS_PER_S,
    )
    # It starts all the same, answers 503, and goes on trying: what starts first should not matter.
    Thread(target=_tell_unreachable, args=(scheduler, options.security), daemon=True).start()
    run(options)


def _tell_unreachable(scheduler: str, security: Callable[[], Any]) -> None:
    try:
        check(scheduler, security=security(), needs_plugin=False)
    except Exception as error:
        click.echo(f"no connection yet, and trying on: {in_one_line(error)}", err=True)


COMMANDS = [status, profile, apply, gateway]
