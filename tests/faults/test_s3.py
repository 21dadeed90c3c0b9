"""A recording on an S3 that goes wrong: moto over HTTP, behind a front that refuses or stalls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.serving import Serving
from symphony_dask.trace import open_run
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until

pytest.importorskip("moto.server", reason="needs moto[server], of the extra test")

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Front:
    """S3 that answers as it is told: "" as moto does, "busy" with 503, "forbidden" with 403, "slow" after 2 seconds."""

    def __enter__(self) -> Front:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.mode = ""
        self.refused = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("PUT", "POST") and self.mode in ("busy", "forbidden"):
            self.refused += 1
            status = "503 Slow Down" if self.mode == "busy" else "403 Forbidden"
            code = _BUSY if self.mode == "busy" else _BUSY.replace(b"SlowDown", b"AccessDenied")
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(code)))])
            return [code]
        if self.mode == "slow":
            time.sleep(2)
        return self._app(environ, start_response)


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    with Front() as front:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": front.url}.items():
            monkeypatch.setenv(name, value)
        from pyarrow.fs import S3FileSystem

        S3FileSystem(endpoint_override=front.url, allow_bucket_creation=True).create_dir("runs")
        yield front


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["busy", "forbidden", "slow"])
def test_serving_goes_on_where_s3_fails_and_what_it_did_not_take_is_counted(front: Front, mode: str) -> None:
    with Cluster(1) as cluster, Serving(cluster.client()) as serving:
        serving.wait_ready(timeout="60s")
        model = serving.deploy("double", models.double, slo="5s", profile="0.1,0.5")
        folder = serving.record(f"s3://runs/{mode}")
        asked = 0

        def ask(n: int) -> None:
            nonlocal asked
            answers = [future.result(30).tolist() for future in model.map([np.array([float(i)]) for i in range(n)])]
            assert answers == [[2.0 * i] for i in range(n)]
            asked += n

        ask(50)
        wait_until(lambda: open_run(folder).requests.collect().height == 50, "the first part", 30)
        front.mode = mode
        end = time.monotonic() + 5
        while time.monotonic() < end:
            began = time.monotonic()
            ask(10)
            assert time.monotonic() - began < 6
        front.mode = ""
        ask(50)
        serving.stop_recording()
        run = open_run(folder)
        recorded, lost = run.requests.collect().height, run.info["lost_rows"]
        assert recorded >= 50
        assert recorded == asked or lost > 0
        assert recorded <= asked
        assert run.info["closed"]
        assert mode == "slow" or front.refused > 0
