"""Runs the command line as ``python -m symphony_dask``."""

from __future__ import annotations

from symphony_dask.cli.main import main

if __name__ == "__main__":
    main()
