"""EC2 that goes wrong: moto over real HTTP on this machine, behind a front that does what moto leaves out.

Client tokens that hold, by zone; ``pending`` and ``shutting-down`` that take time; fresh instances that are not listed
yet; pages by instance; no capacity, throttling, answers that are lost after the work was done; spot kills. And it
counts for itself what is live at each moment, and what that costs.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qs

from autoscale.fleet.fleet import ENDED, LAUNCHING, RUNNING, STOPPING, Instance
from autoscale.providers.prices import prices

REGION = "us-east-1"
ZONES = ("us-east-1a", "us-east-1b")
TEMPLATE = "symphony-workers"

#: What the processes of a test need to talk to the front.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class Made:
    """An instance that the front has let through."""

    id: str
    slot: int
    instance_type: str
    zone: str
    made_s: float
    ended_s: float | None = None
    spot_killed: bool = False


@dataclass
class AwsFront:
    """A server; a context manager. Times in s.

    empty: (type, zone or "") without capacity; codes: the error that a type then gives.
    lose, throttle: shares of calls whose answer is lost, that are throttled.
    on_call: called with the action and "before", "done" or "after": before the work, before the answer, after it.
    """

    pending_s: float = 0.0
    stop_s: float = 0.0
    lag_s: float = 0.0
    empty: set[tuple[str, str]] = field(default_factory=set)
    codes: dict[str, str] = field(default_factory=dict)
    lose: float = 0.0
    throttle: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    on_call: Callable[[str, str], None] = lambda action, stage: None
    calls: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    times: list[tuple[float, str, str]] = field(default_factory=list)
    most: int = 0
    most_usd_per_hour: float = 0.0
    made: dict[str, Made] = field(default_factory=dict)

    def __enter__(self) -> AwsFront:
        os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
        from moto.backends import get_backend
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._environment = {key: os.environ.get(key) for key in ENVIRONMENT}
        os.environ.update(ENVIRONMENT)
        self._tokens: dict[tuple[str, str], tuple[dict[str, list[str]], str, bytes]] = {}
        self._lock = threading.RLock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._backends = {name: get_backend(name) for name in ("ec2", "sqs")}  # type: ignore[call-overload]
        for backend in self._backends.values():
            backend.reset()
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.client("ec2").create_launch_template(
            LaunchTemplateName=TEMPLATE, LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "g4dn.xlarge"}
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for key, value in self._environment.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(service, endpoint_url=self.url, region_name=REGION)

    # What the test may look at and do

    def live(self) -> list[Instance]:
        """All that is there, whether it is listed or not, as a fleet would show it."""
        with self._lock:
            return [self._shown(m) for m in self.made.values() if self._state(m) != ENDED]

    def spot_kill(self, instance_id: str) -> None:
        """EC2 takes an instance back."""
        from moto.ec2.models.instances import StateReason

        with self._lock:
            self.made[instance_id].ended_s = time.time()
            self.made[instance_id].spot_killed = True
            for backend in self._backends["ec2"].values():
                for instance in backend[REGION].all_instances():
                    if instance.id == instance_id:
                        instance.terminate()
                        instance.state_reason = StateReason("Server.SpotInstanceTermination", "no Spot capacity")

    def usd_per_hour(self) -> float:
        return sum(i.usd_per_hour for i in self.live())

    # WSGI

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        asked = parse_qs(body.decode("utf-8", "replace")) if b"Action=" in body else {}
        action = asked.get("Action", [""])[0]
        self.on_call(action, "before")
        with self._lock:
            self.calls[action] += 1
            lost, throttled = (self.chance.random() < share for share in (self.lose, self.throttle))
        if action and throttled:
            status, answer = "503 Service Unavailable", _error("RequestLimitExceeded")
        else:
            with self._lock:
                status, answer = self._work(action, asked, environ, body)
        code = re.search(rb"<Code>([^<]*)</Code>", answer) if not status.startswith("200") else None
        with self._lock:
            told = code[1].decode() if code else "ok"
            self.answers[told] += 1
            self.times.append((time.monotonic(), action, told))
        self.on_call(action, "done")
        if action and lost and not throttled:
            environ["werkzeug.socket"].shutdown(2)
            return []
        start_response(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(answer)))])

        def parts() -> Iterable[bytes]:
            yield answer
            self.on_call(action, "after")

        return parts()

    def _work(
        self, action: str, asked: dict[str, list[str]], environ: dict[str, Any], body: bytes
    ) -> tuple[str, bytes]:
        if action == "RunInstances":
            return self._run_instances(asked, environ, body)
        if action == "DescribeInstances":
            return self._describe_instances(asked, environ)
        if action == "TerminateInstances":
            for name, values in asked.items():
                if name.startswith("InstanceId.") and values[0] in self.made:
                    made = self.made[values[0]]
                    made.ended_s = made.ended_s or time.time()
        return self._forward(environ, body)

    def _run_instances(self, asked: dict[str, list[str]], environ: dict[str, Any], body: bytes) -> tuple[str, bytes]:
        one = {name: values[0] for name, values in asked.items()}
        kind, zone = one["InstanceType"], one.get("Placement.AvailabilityZone", "")
        token = (one["ClientToken"], zone)
        if token in self._tokens:
            first, made, answer = self._tokens[token]
            if first != asked:
                return "400 Bad Request", _error("IdempotentParameterMismatch")
            if self._state(self.made[made]) == ENDED:
                return "400 Bad Request", _error("IdempotentInstanceTerminated")
            return "200 OK", answer
        if {(kind, ""), (kind, zone)} & self.empty:
            return "400 Bad Request", _error(self.codes.get(kind, "InsufficientInstanceCapacity"))
        status, answer = self._forward(environ, body)
        found = re.search(rb"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)
        if found is not None:
            made = found[1].decode()
            self.made[made] = Made(made, _slot(one), kind, zone, time.time())
            self._tokens[token] = (asked, made, answer)
            live = self.live()
            self.most = max(self.most, len(live))
            self.most_usd_per_hour = max(self.most_usd_per_hour, sum(i.usd_per_hour for i in live))
            answer = self._redrawn(answer)
        return status, answer

    def _describe_instances(self, asked: dict[str, list[str]], environ: dict[str, Any]) -> tuple[str, bytes]:
        size = int(asked.pop("MaxResults", ["1000"])[0])
        start = int(asked.pop("NextToken", ["0"])[0])
        from urllib.parse import urlencode

        body = urlencode({**{k: v[0] for k, v in asked.items()}, "MaxResults": "100000"}).encode()
        status, answer = self._forward(environ, body)
        if not status.startswith("200"):
            return status, answer
        root = ET.fromstring(self._redrawn(answer))
        reservations = root.find("{*}reservationSet")
        assert reservations is not None
        kept = []
        for reservation in list(reservations):
            reservations.remove(reservation)
            made = self.made.get(reservation.findtext(".//{*}instanceId") or "")
            if made is None or time.time() - made.made_s >= self.lag_s:
                kept.append(reservation)
        for reservation in kept[start : start + size]:
            reservations.append(reservation)
        if len(kept) > start + size:
            ET.SubElement(root, reservations.tag.replace("reservationSet", "nextToken")).text = str(start + size)
        return status, ET.tostring(root)

    def _redrawn(self, answer: bytes) -> bytes:
        """An answer with the states that instances would have on EC2."""
        root = ET.fromstring(answer)
        names = {LAUNCHING: ("0", "pending"), RUNNING: ("16", "running"), STOPPING: ("32", "shutting-down")}
        for item in root.iter():
            made, state = self.made.get(item.findtext("{*}instanceId") or ""), item.find("{*}instanceState")
            if made is not None and state is not None:
                code, name = names.get(self._state(made), ("48", "terminated"))
                for part, text in (("code", code), ("name", name)):
                    element = state.find(f"{{*}}{part}")
                    assert element is not None
                    element.text = text
        return ET.tostring(root)

    def _forward(self, environ: dict[str, Any], body: bytes) -> tuple[str, bytes]:
        from io import BytesIO

        told: list[str] = []
        given = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        parts = self._app(given, lambda status, headers, exc_info=None: told.append(status))
        return told[0], b"".join(parts)

    def _state(self, made: Made) -> str:
        now = time.time()
        if made.ended_s is not None:
            return ENDED if now - made.ended_s >= self.stop_s else STOPPING
        return RUNNING if now - made.made_s >= self.pending_s else LAUNCHING

    def _shown(self, made: Made) -> Instance:
        gpus, usd = _price(made.instance_type)
        return Instance(
            made.id, made.slot, 0, made.instance_type, made.zone, "", self._state(made), made.made_s, gpus, usd,
        )  # fmt: skip


@cache
def _price(instance_type: str) -> tuple[int, float]:
    """GPUs, and USD an hour; none for what has no GPU."""
    rented = prices().find(instance_type)
    return (rented.gpus, rented.usd_per_hour) if rented is not None else (0, 0.0)


def _slot(one: dict[str, str]) -> int:
    key = next((k for k, v in one.items() if v == "symphony:slot"), None)
    return int(one[key.removesuffix("Key") + "Value"]) if key else -1


def _error(code: str) -> bytes:
    text = f"<Response><Errors><Error><Code>{code}</Code><Message>by the front</Message></Error></Errors>"
    return f"{text}<RequestID>front</RequestID></Response>".encode()


def tagged(instances: Sequence[Any]) -> list[dict[str, str]]:
    """The tags of described things, without EC2's own."""
    return [{t["Key"]: t["Value"] for t in i.get("Tags", []) if not t["Key"].startswith("aws:")} for i in instances]
