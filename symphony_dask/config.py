"""The ``symphony:`` section of Dask's configuration."""

from __future__ import annotations

from pathlib import Path

import dask.config
import yaml

_FILE = Path(__file__).with_name("symphony.yaml")


def load() -> None:
    """Make the defaults known to Dask, and put a commented copy beside its own configuration files."""
    dask.config.ensure_file(source=str(_FILE))
    dask.config.update_defaults(yaml.safe_load(_FILE.read_text()))
