"""A whole cluster where nothing can be written but Dask's own scratch space."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client.serving import Serving
from tests.helpers import confined
from tests.helpers.cluster import START_S, wait_until


@contextmanager
def process(root: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    command = confined.command(root, "-m", "dask", *arguments, **settings)
    started = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.kill()


@pytest.mark.slow
def test_a_cluster_of_a_read_only_package_serves_and_says_what_it_cannot_keep() -> None:
    with confined.package_copy(caches=True) as root, tempfile.TemporaryDirectory() as scratch:
        confined.make_writable(root, False)
        file = Path(scratch, "scheduler.json")
        state = {"DASK_SYMPHONY__STATE": str(root / "state"), "DASK_SYMPHONY__TRACE__DIRECTORY": "symphony-runs"}
        scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
        here = {"DASK_TEMPORARY_DIRECTORY": scratch, "DASK_SYMPHONY__GPU_CLASS": "cpu"}
        with process(root, *scheduler, "--no-dashboard", "--preload", "symphony_dask", **state):
            wait_until(file.exists, "the scheduler's address", START_S)
            address = str(json.loads(file.read_text())["address"])
            worker = ["worker", address, "--no-nanny", "--no-dashboard", "--resources", "GPU=1", "--nthreads", "1"]
            with process(root, *worker, **here), Client(address, timeout=START_S, set_as_default=False) as client:
                with Serving(client) as serving:
                    serving.deploy("model", Emulated(0.1, 1.0), slo="30s")(np.zeros(2))
                    recording, kept = serving.status()["problems"]
                assert recording.startswith("cannot be recorded into symphony.trace.directory 'symphony-runs': ")
                assert kept.startswith(f"what is deployed cannot be kept in symphony.state '{root}/state': Perm")
