"""Turns a bare instance into Dask workers, one a GPU: settings, TLS material, systemd units. Run as root, by user data.

The settings are those of the launch template (``/etc/symphony/settings.env``); the tag ``symphony:scheduler`` of the
instance, where there is one, says which scheduler the workers join, so that one launch template serves any.
"""

from __future__ import annotations

import importlib.resources
import logging
import os
import subprocess
from pathlib import Path

import click

from infra.worker import imds, tls
from symphony_dask.errors import BadInput

logger = logging.getLogger(__name__)

UNITS = ("symphony-worker@.service", "symphony-watchdog.service", "symphony-spot.service")


def scheduler_address(settings: dict[str, str]) -> str:
    """Where the workers of this instance are to connect; raises ``BadInput`` if nothing says so."""
    address = imds.read("tags/instance/symphony:scheduler") or settings.get("SYMPHONY_SCHEDULER")
    if not address:
        remedy = "give the stack's parameter SchedulerAddress, or launch with the tag symphony:scheduler"
        raise BadInput(f"nothing says which scheduler this instance is to join: {remedy}")
    return address


def gpus() -> int:
    """How many GPUs the driver sees; raises ``RuntimeError`` if none, as none is to serve on its CPU."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    if listed.returncode or not count:
        said = (listed.stderr or listed.stdout).strip()
        raise RuntimeError(f"nvidia-smi found no GPU: use a GPU instance type and an image with its driver. {said}")
    return count


def environment(settings: dict[str, str], address: str, tls_settings: dict[str, str]) -> dict[str, str]:
    """What the units' processes find in their environment."""
    return {
        **settings,
        "SYMPHONY_SCHEDULER": address,
        "SYMPHONY_INSTANCE": imds.must_read("instance-id"),
        "SYMPHONY_HOST": imds.must_read("local-ipv4"),
        **tls_settings,
    }


def write_environment(path: Path, values: dict[str, str]) -> None:
    """Write systemd's ``EnvironmentFile``; raises ``BadInput`` where a value has a line break or a quote in it."""
    for name, value in values.items():
        if set(value) & set("\n\r\"'\\"):
            raise BadInput(f"setting {name} is {value!r}: it may have no line break, quote or backslash")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{name}="{value}"\n' for name, value in values.items()))


def read_environment(path: Path) -> dict[str, str]:
    """The ``NAME=value`` lines of a file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value.strip('"') for name, _, value in pairs}


@click.command()
@click.option("--root", default="/", type=click.Path(path_type=Path), help="Where files are written, for trials.")
@click.option("--user", default="symphony", help="Who the workers run as; made if there is no such user.")
def main(root: Path, user: str) -> None:
    """Make this instance a worker of its cluster, and start it."""
    logging.basicConfig(level="INFO", format="%(message)s")
    count = gpus()
    settings = read_environment(root / "etc/symphony/settings.env")
    os.environ.setdefault("AWS_DEFAULT_REGION", settings["AWS_DEFAULT_REGION"])
    subprocess.run(["useradd", "--system", "--user-group", "--create-home", user], check=False)
    directory = root / tls.DIRECTORY.relative_to("/")
    address, secret = scheduler_address(settings), settings.get("SYMPHONY_SECRET")
    tls_settings: dict[str, str] = {}
    if address.startswith("tls://"):
        if not secret:
            raise BadInput(f"scheduler {address!r} says tls, but the stack's TLS secret is not set")
        tls_settings = tls.fetch(secret, directory / "tls", group=user)
    write_environment(directory / "worker.env", environment(settings, address, tls_settings))
    for unit in UNITS:
        text = importlib.resources.files("infra.worker").joinpath("units", unit).read_text()
        (root / "etc/systemd/system" / unit).write_text(text)
    workers = [f"symphony-worker@{gpu}.service" for gpu in range(count)]
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "start", *UNITS[1:], *workers], check=True)
    logger.info("started %d workers", count)


if __name__ == "__main__":
    main()
