"""Tokens, keys and credentials stay where they belong: not in logs, runs, traces, metrics, pages, errors or reprs."""

from __future__ import annotations

import base64
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.serving import Serving
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.errors import SymphonyError
from symphony_dask.slot.batch_inbox import BatchInbox
from symphony_dask.wire.hello import ClientHello
from symphony_dask.wire.listener import Listener
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.gateway_process import GatewayProcess, tensor

pytest.importorskip("cryptography")
pytest.importorskip("uvicorn")
pytest.importorskip("opentelemetry.sdk")

from tests.helpers.certificates import Authority

AWS = {
    "AWS_ACCESS_KEY_ID": "AKIAMARKEDFORTHETEST",
    "AWS_SECRET_ACCESS_KEY": "marked/secret/key/of/aws",
    "AWS_SESSION_TOKEN": "marked-session-token-of-aws",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",  # nobody is there, so each use of it fails and says so
}
BEARER, WRONG_BEARER = "marked-bearer-token", "marked-guess-at-a-token"


class Shown:
    """All that somebody may get to see, by where it was."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}

    def add(self, where: str, what: Any) -> None:
        text = what if isinstance(what, bytes) else (what if isinstance(what, str) else repr(what)).encode()
        self.texts[where] = self.texts.get(where, b"") + text

    def where(self, secret: str) -> list[str]:
        plain = secret.encode()
        forms = (plain, base64.b64encode(plain).rstrip(b"="), plain.hex().encode())
        return [where for where, text in self.texts.items() if any(form in text for form in forms)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shown, dict[str, str]]:
    """What a cluster with TLS, a gateway, tracing, recording and verbose logs showed; and its secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    good = Authority(folder, "ours").issue("good")
    spans, tokens = folder / "spans", folder / "tokens"
    tokens.write_text(BEARER + "\n")
    settings = {
        **AWS,
        "DASK_SYMPHONY__POLICY": "eager",
        "DASK_SYMPHONY__TRACING": "1.0",
        "DASK_SYMPHONY__STATE": str(folder / "state"),
        "SPANS_FILE": str(spans),
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": '["tests.helpers.spans_to_file", "symphony_dask"]',
        "DASK_LOGGING__DISTRIBUTED": "debug",
        "DASK_LOGGING__SYMPHONY_DASK": "debug",
    }
    out = Shown()
    with Cluster(
        1, preload=False, tls=good.dask_arguments(), security=good.security(), settings=settings, dashboard=True
    ) as cluster:
        client = cluster.client()
        serving = Serving(client)
        serving.wait_ready()
        info = client.sync(client.scheduler.symphony_info)
        run = folder / "run"
        failed(lambda: serving.record("s3://bucket/run"), out)
        serving.record(str(run), note="a run")
        exercise(serving, out)
        back = ["--scheduler-ca-file", good.authority, "--scheduler-cert", good.cert, "--scheduler-key", good.key]
        with GatewayProcess(cluster.address, *back, "--token-file", str(tokens), settings=AWS) as gateway:
            look_at_gateway(gateway, out)
        out.add("the gateway's log", gateway.errors)
        serving.stop_recording()
        for what in ("status", "signals", "overview", "deployed", "declared", "pipelines"):
            out.add(f"serving.{what}()", json.dumps(getattr(serving, what)(), default=repr))
        out.add("serving.versions()", serving.versions("m"))
        for what in (serving, serving._lane, serving._lane._direct, serving.lane._connection, serving.model("m")):
            out.add("repr", what)
            if hasattr(what, "_repr_html_"):
                out.add("notebook", what._repr_html_())
        port = client.scheduler_info()["services"]["dashboard"]
        for page in ("metrics", "symphony", "json/counts.json", "info/main/workers.html", "info/logs.html"):
            out.add("the dashboard", fetched(f"http://127.0.0.1:{port}/{page}"))
        out.add("scheduler_info", client.scheduler_info())
        out.add("metadata", client.get_metadata(["symphony"]))
        serving.close()
    out.add("the processes' logs", cluster.final_logs)
    for file in run.rglob("*"):
        if file.is_file():
            out.add("the run", file.read_bytes())
            if file.suffix == ".parquet":
                import polars

                out.add("the run's rows", str(polars.read_parquet(file).to_dicts()))
    out.add("spans", spans.read_bytes())
    out.add("symphony.state", (folder / "state").read_bytes())
    key = "".join(Path(good.key).read_text().splitlines()[1:2])
    secrets = {"token of the lane": info["token"], "TLS key": key, "bearer token": BEARER, "guess": WRONG_BEARER}
    return out, secrets | {name: AWS[name] for name in list(AWS)[:3]}


def exercise(serving: Serving, out: Shown) -> None:
    """Requests that are served, and all kinds of failures."""
    model = serving.deploy("m", models.double, slo="60s", profile="0.1,0.5", example=np.zeros(2, np.float32))
    large = serving.deploy("large", models.double, slo="60s", profile="0.1,0.5", version=7)
    assert model(np.ones(2, np.float32)).tolist() == [2.0, 2.0]
    assert large(np.ones(20_000)).sum() == 40_000
    fails = serving.deploy("fails", models.one_answer_short, slo="60s", profile="0.1,0.5")
    for call in (
        lambda: fails(np.ones(2)),
        lambda: model(np.ones(2, np.float32), slo="1us"),
        lambda: model(np.ones(3)),
        lambda: serving.find("nobody"),
        lambda: serving.deploy("bad", models.load_nothing, slo="1s", profile="1,1"),
    ):
        failed(call, out)


def failed(call: Callable[[], Any], out: Shown) -> None:
    """Have an error be shown."""
    with pytest.raises(SymphonyError) as raised:
        call()
    out.add("errors", f"{raised.value!r} {raised.value.__cause__!r}")


def look_at_gateway(gateway: GatewayProcess, out: Shown) -> None:
    good, bad = {"Authorization": f"Bearer {BEARER}"}, {"Authorization": f"Bearer {WRONG_BEARER}"}
    given = {"inputs": [tensor([1, 2], [1, 2])]}
    assert gateway.post("/v2/models/m/infer", given, good).status == 200
    for headers, body, status in (({}, given, 401), (bad, given, 401), (good, {"inputs": [1]}, 400)):
        answer = gateway.post("/v2/models/m/infer", body, headers)
        assert answer.status == status
        out.add("the gateway's answers", answer)
    assert gateway.post("/v2/models/fails/infer", {"inputs": [tensor([1, 2], [1, 2])]}, good).status == 500
    for page in ("/metrics", "/openapi.json", "/v2", "/v2/models/m", "/v2/models/m/config", "/v2/models/stats"):
        answer = gateway.get(page, **good)
        assert answer.status == 200
        out.add("the gateway's answers", answer)


def fetched(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=20) as page:
            return bytes(page.read())
    except urllib.error.HTTPError as error:
        return error.read()


@pytest.mark.slow
def test_nobody_sees_a_secret(shown: tuple[Shown, dict[str, str]]) -> None:
    out, secrets = shown
    assert {what: out.where(secret) for what, secret in secrets.items()} == {what: [] for what in secrets}


@pytest.mark.slow
def test_what_was_searched_is_all_there(shown: tuple[Shown, dict[str, str]]) -> None:
    """Else the search would find nothing for that."""
    out, _ = shown
    nothing_to_say = {"the gateway's log", "serving.pipelines()", "metadata"}
    assert [where for where, text in out.texts.items() if len(text) < 20 and where not in nothing_to_say] == []
    for word, where in (
        ("symphony.execute", "spans"),
        ("distributed", "the processes' logs"),
        ("DEBUG", "the processes' logs"),
        ("requests", "the run"),
        ("symphony_gateway_requests_total", "the gateway's answers"),
        ("DeadlineExceeded", "errors"),
        ("symphony_model_requests", "the dashboard"),
    ):
        assert where in out.where(word), (word, where)


def test_objects_that_hold_a_token_do_not_print_it() -> None:
    dispatcher = Dispatcher(max_requests=4)
    inbox = BatchInbox(lambda batch: None)
    inbox.token = dispatcher.token
    text = f"{dispatcher!r} {inbox!r} {Listener(lambda *frame: None, lambda *lost: None)!r}"
    text += repr(ClientHello(token=dispatcher.token))
    assert dispatcher.token not in text
    assert len(dispatcher.token) == 32


def test_a_controller_of_instances_logs_no_credentials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("boto3")
    from autoscale.fleet.fleet import FleetError
    from autoscale.providers.ec2 import Ec2Fleet

    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "autoscale")
    fleet = Ec2Fleet(
        "symphony", launch_template="t", types=["g4dn.xlarge"], zones=["us-east-1a"], region="us-east-1",
        endpoint_url="http://127.0.0.1:1",
    )  # fmt: skip
    with pytest.raises(FleetError) as raised:
        fleet.list()
    text = f"{caplog.text} {raised.value!r} {raised.value.__cause__!r} {fleet!r} {vars(fleet)!r}"
    assert [name for name in list(AWS)[:3] if AWS[name] in text] == []
