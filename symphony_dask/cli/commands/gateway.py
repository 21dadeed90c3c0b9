"""``symphony gateway``: serves the models of a cluster over HTTP until SIGTERM."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from symphony_dask.cli.command import command
from symphony_dask.cli.error_line import in_one_line
from symphony_dask.cli.scheduler_address import scheduler_option
from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from distributed.security import Security


@click.command()
@scheduler_option()
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen at this address; 0.0.0.0 is everywhere.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65_535),
    help="Listen at this port; 0 takes any free one.",
)
@click.option(
    "--processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Run this many processes that share the port.",
)
@click.option(
    "--token-file",
    help="Require one of the bearer tokens in this file, one a line, with each request.",
)
@click.option("--tls-cert", help="Serve HTTPS with this certificate (PEM).")
@click.option("--tls-key", help="Use this key (PEM) with --tls-cert.")
@click.option(
    "--tls-client-ca",
    help="Require client certificates of this CA (PEM). By default, clients need none.",
)
@click.option(
    "--scheduler-ca-file", help="Trust this CA (PEM) of a cluster with TLS. By default, use Dask's configuration."
)
@click.option("--scheduler-cert", help="Show this certificate (PEM) to the cluster.")
@click.option("--scheduler-key", help="Use this key (PEM) with --scheduler-cert.")
@click.option(
    "--max-body",
    "max_body_bytes",
    default=64 << 20,
    show_default=True,
    type=click.IntRange(1),
    help="Refuse requests of more bytes.",
)
@click.option(
    "--max-concurrency",
    default=8192,
    show_default=True,
    type=click.IntRange(1),
    help="Refuse requests while a process handles this many.",
)
@click.option(
    "--read-timeout",
    default="30s",
    show_default=True,
    metavar="DURATION",
    help="Give up requests whose head and body take longer to arrive.",
)
@click.option(
    "--grace",
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="Finish requests for this long after --notice.",
)
@click.option(
    "--notice",
    default="1s",
    show_default=True,
    metavar="DURATION",
    help="Serve on for this long after SIGTERM, but report not ready.",
)
@command
def gateway(scheduler: str, read_timeout: str, grace: str, notice: str, **options: Any) -> None:
    """Serve a cluster's models over HTTP.

    Speaks the Open Inference Protocol v2 and TensorFlow Serving's predict. Runs until SIGTERM. Needs the extra
    "gateway" (pip install 'symphony-dask[gateway]').
    """
    import logging
    from threading import Thread

    from symphony_dask.units import NS_PER_S, parse_duration_ns

    try:
        from symphony_dask.gateway.server import Options, run
    except ModuleNotFoundError as error:
        raise BadInput(f"{error.name} is not installed: pip install 'symphony-dask[gateway]'") from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    served = Options(
        scheduler=scheduler,
        read_timeout_s=parse_duration_ns(read_timeout, "read-timeout") / NS_PER_S,
        grace_s=parse_duration_ns(grace, "grace") / NS_PER_S,
        notice_s=parse_duration_ns(notice, "notice") / NS_PER_S,
        **options,
    )
    # It starts all the same, answers 503, and goes on trying: what starts first should not matter.
    Thread(target=_report_unreachable, args=(scheduler, served.security), daemon=True).start()
    run(served)


def _report_unreachable(scheduler: str, security: Callable[[], Security | None]) -> None:
    from symphony_dask.cli.scheduler_check import check

    try:
        check(scheduler, security=security(), needs_plugin=False)
    except Exception as error:
        click.echo(f"no connection yet, and trying on: {in_one_line(error)}", err=True)
