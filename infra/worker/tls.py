"""Fetches the cluster's TLS material from AWS Secrets Manager, by the instance's role, into memory (a tmpfs) only.

The secret is a JSON object with ``ca``, ``cert`` and ``key``, each in PEM, as ``infra/tls.sh`` prints it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from symphony_dask.errors import BadInput

if TYPE_CHECKING:
    from botocore.client import BaseClient

DIRECTORY = Path("/run/symphony")
_NAMES = ("ca", "cert", "key")


def fetch(
    secret_id: str, directory: Path, *, client: BaseClient | None = None, group: str | None = None
) -> dict[str, str]:
    """Write the three files into ``directory`` and return the settings of Dask, as environment variables, for them.

    group: who may read them beside the owner. Raises ``BadInput`` if the secret is not such an object.
    """
    if client is None:
        import boto3

        client = boto3.client("secretsmanager")
    text = client.get_secret_value(SecretId=secret_id)["SecretString"]
    try:
        found = json.loads(text)
        material = {name: str(found[name]) for name in _NAMES}
    except (ValueError, TypeError, KeyError):
        # Nothing of the secret itself may get into a log.
        remedy = 'a JSON object with "ca", "cert" and "key" in PEM, as infra/tls.sh prints it'
        raise BadInput(f"secret {secret_id!r} has no TLS material: it must be {remedy}") from None
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    if group is not None:
        shutil.chown(directory, group=group)
    paths = {}
    for name, pem in material.items():
        path = directory / f"{name}.pem"
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as file:
            file.write(pem)
        if group is not None:
            shutil.chown(fresh, group=group)
        fresh.rename(path)
        paths[name] = str(path)
    return settings(paths["ca"], paths["cert"], paths["key"])


def settings(ca: str, cert: str, key: str) -> dict[str, str]:
    """Dask's TLS settings, as environment variables, for files in PEM."""
    found = {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true",
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": ca,
    }
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = cert
        found[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = key
    return found


@click.command()
@click.argument("secret")
@click.argument("directory", type=click.Path(path_type=Path))
def main(secret: str, directory: Path) -> None:
    """Write the TLS material of SECRET into DIRECTORY, and print Dask's settings for it as shell exports."""
    for name, value in fetch(secret, directory).items():
        click.echo(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
