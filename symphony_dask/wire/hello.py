"""Defines how a lane connection begins: HELLO says who connects, and the server answers WELCOME or REFUSED.

These three keep their form in every version, so that peers of different ones understand why they do not go together.
HELLO and WELCOME are maps, in which a later release may say more: what is not known is passed over.

Versions: HELLO says the lowest and the highest that its sender speaks. The server takes the highest that both speak
and says so in WELCOME; if there is none, REFUSED says which both have. Up to version 7 a HELLO named one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from secrets import compare_digest
from typing import Any

from symphony_dask.errors import BadInput
from symphony_dask.wire.fields import MOST_31, MOST_NS, bad_field, fields_of, whole
from symphony_dask.wire.messages import Op

#: The lowest and the highest version that this release speaks. Raised when frames change their meaning.
VERSIONS = (8, 8)

#: No worker has more slots.
MOST_SLOTS = 4096


class VersionMismatch(BadInput):
    """Two peers speak no version of the lane in common; the message says which each speaks."""


@dataclass(frozen=True, kw_only=True)
class ClientHello:
    """A client connects to the scheduler. token: the cluster's, which travels only over Dask's own channel."""

    token: str = field(repr=False)
    versions: tuple[int, int] = VERSIONS

    def encode(self) -> list[Any]:
        return [Op.HELLO, {"token": self.token, "versions": self.versions, "role": "client"}]


@dataclass(frozen=True, kw_only=True)
class WorkerHello:
    """A worker connects to the scheduler.

    lane: host and port where clients reach it; ("", 0): they cannot. memory: bytes for models in each slot; None: no
    limit.
    """

    token: str = field(repr=False)
    worker: str
    host: str
    slots: int
    gpu_class: str
    lane: tuple[str, int] = ("", 0)
    memory: int | None = None
    versions: tuple[int, int] = VERSIONS

    def encode(self) -> list[Any]:
        said = {"token": self.token, "versions": self.versions, "role": "worker", "worker": self.worker}
        more = {"host": self.host, "slots": self.slots, "gpu_class": self.gpu_class}
        return [Op.HELLO, {**said, **more, "lane": self.lane, "memory": self.memory}]


@dataclass(frozen=True, kw_only=True)
class LinkHello:
    """A client connects to a worker. client: its number at the scheduler; link: what it calls this connection."""

    token: str = field(repr=False)
    client: int
    link: int
    versions: tuple[int, int] = VERSIONS

    def encode(self) -> list[Any]:
        said = {"token": self.token, "versions": self.versions, "role": "link"}
        return [Op.HELLO, {**said, "client": self.client, "link": self.link}]


@dataclass(frozen=True)
class Welcome:
    """A server takes a peer in.

    version: which they speak from now on. connection: the client's number, -1 for others. inline_bytes: larger payloads
    and answers go past the scheduler where they can. wait_ns: for how long requests wait for a first GPU.
    """

    version: int = VERSIONS[1]
    connection: int = -1
    inline_bytes: int = MOST_31
    wait_ns: int = 0

    def encode(self) -> list[Any]:
        said = {"version": self.version, "connection": self.connection}
        return [Op.WELCOME, {**said, "inline_bytes": self.inline_bytes, "wait_ns": self.wait_ns}]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Welcome:
        said = _map("WELCOME", fields)
        return cls(
            whole("WELCOME", "version", said.get("version"), 0, MOST_31),
            whole("WELCOME", "connection", said.get("connection"), -1, MOST_31),
            whole("WELCOME", "inline bytes", said.get("inline_bytes")),
            whole("WELCOME", "wait", said.get("wait_ns"), 0, MOST_NS),
        )


@dataclass(frozen=True)
class Refused:
    """A server takes a peer not in, and hangs up."""

    why: str

    def encode(self) -> list[Any]:
        return [Op.REFUSED, self.why]

    @classmethod
    def decode(cls, fields: list[Any], blob: memoryview) -> Refused:
        (why,) = fields_of("REFUSED", fields, 1)
        if type(why) is not str:
            raise bad_field("REFUSED", "reason", why, "give a text")
        return cls(why)


Hello = ClientHello | WorkerHello | LinkHello


def read_hello(fields: list[Any], token: str | None) -> tuple[Hello, int]:
    """Who connects, and the version to speak with it.

    Raises ``BadInput`` if its token is not the server's, and ``VersionMismatch``, a kind of it.
    """
    said = _map("HELLO", fields)
    given = said.get("token")
    if token is None or not compare_digest(_bytes(given if type(given) is str else ""), token.encode()):
        raise BadInput("lane HELLO has a wrong token")
    versions, role = _versions(said), said.get("role")
    version = common_version(versions)
    if role == "client":
        return ClientHello(token=token, versions=versions), version
    if role == "worker":
        return _read_worker(said, token, versions), version
    if role == "link":
        client = whole("HELLO", "client", said.get("client"), 0, MOST_31)
        link = whole("HELLO", "link", said.get("link"), 0, MOST_31)
        return LinkHello(token=token, client=client, link=link, versions=versions), version
    raise bad_field("HELLO", "role", role, "give client, worker or link")


def common_version(theirs: tuple[int, int]) -> int:
    """The highest version that a peer and this release speak; raises ``VersionMismatch``."""
    version = min(theirs[1], VERSIONS[1])
    if version < max(theirs[0], VERSIONS[0]):
        text = f"the peer speaks lane {_range(theirs)}, this release speaks {_range(VERSIONS)}"
        raise VersionMismatch(f"{text}: install one release of symphony-dask on clients, scheduler and workers")
    return version


def _read_worker(said: dict[Any, Any], token: str, versions: tuple[int, int]) -> WorkerHello:
    lane = said.get("lane") or ["", 0]
    if type(lane) is not list or len(lane) != 2:
        raise bad_field("HELLO", "lane", lane, "give host and port")
    texts = {name: said.get(name) for name in ("worker", "host", "gpu_class")} | {"lane host": lane[0]}
    for name, text in texts.items():
        if type(text) is not str:
            raise bad_field("HELLO", name, text, "give a text")
    memory = said.get("memory")
    return WorkerHello(
        token=token,
        worker=said["worker"],
        host=said["host"],
        slots=whole("HELLO", "slots", said.get("slots"), 1, MOST_SLOTS),
        gpu_class=said["gpu_class"],
        lane=(lane[0], whole("HELLO", "port", lane[1], 0, 65_535)),
        memory=None if memory is None else whole("HELLO", "memory", memory),
        versions=versions,
    )


def _versions(said: dict[Any, Any]) -> tuple[int, int]:
    one = said.get("version")
    versions = said.get("versions", [one, one])
    if type(versions) is not list or len(versions) != 2:
        raise bad_field("HELLO", "versions", versions, "give the lowest and the highest")
    lowest = whole("HELLO", "version", versions[0], 0, MOST_31)
    return lowest, whole("HELLO", "version", versions[1], lowest, MOST_31)


def _range(versions: tuple[int, int]) -> str:
    lowest, highest = versions
    return f"version {lowest}" if lowest == highest else f"versions {lowest} to {highest}"


def _map(op: str, fields: list[Any]) -> dict[Any, Any]:
    (said,) = fields_of(op, fields, 1)
    if type(said) is not dict:
        raise bad_field(op, "field", said, "give a map")
    return said


def _bytes(text: str) -> bytes:
    """Of any text, so also of one that is no Unicode."""
    return text.encode("utf-8", "surrogatepass")
