"""Pickle, which runs what it says, is loaded only from peers of the Dask cluster that deploy models or pipelines."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import msgpack
import numpy as np
import pytest

from symphony_dask.client.declarations import read
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, SymphonyError
from symphony_dask.wire import array_codec, codec
from symphony_dask.wire.handshake import connect
from symphony_dask.wire.hello import ClientHello, LinkHello
from symphony_dask.wire.messages import Data, Op, Submit
from symphony_dask.wire.records import SUBMIT_ROW, make_column, make_records
from tests.helpers import models
from tests.helpers.cluster import Cluster

Deploy = Callable[..., Model]
ROOT = Path(__file__).parents[2]

#: Who may load pickle, and from where it comes.
MAY_LOAD = {
    "symphony_dask/slot/model_loading.py": "a model, from the scheduler over Dask's channel",
    "symphony_dask/client/stages.py": "the functions of a pipeline, from the scheduler over Dask's channel",
    "workloads/live/lane_generator.py": "what to send, from the parent process in a folder of this user's only",
    "workloads/live/load_generator.py": "the results of these processes",
    "workloads/faults/models.py": "the numbers that its models left in a folder of this user's only",
}

#: Modules and functions that run what they read.
LOADERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle", "_pickle"}
FUNCTIONS = {"torch.load", "np.load", "numpy.load", "np.fromfile", "yaml.load", "yaml.unsafe_load", "eval", "exec"}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return touch, (self.marker,)


def touch(path: str) -> None:
    Path(path).touch()


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that is there once a payload of ``bombs`` was loaded by whomever; at the end it must not be."""
    marker = tmp_path / "marker"
    for bomb in bombs(marker):
        pickle.loads(bomb)
        assert marker.exists()
        marker.unlink()
    yield marker
    assert not marker.exists()


def bombs(marker: Path) -> list[bytes]:
    by_value = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    plain = b"cbuiltins\nexec\n(V" + by_value.encode() + b"\ntR."  # protocol 0, without any module of ours
    return [pickle.dumps(Bomb(marker)), cloudpickle.dumps(Bomb(marker)), plain]


def test_only_these_modules_load_pickle() -> None:
    found: dict[str, set[str]] = {}
    for package in ("symphony_dask", "workloads", "autoscale", "infra"):
        for file in sorted((ROOT / package).rglob("*.py")):
            names = set(loads_of(ast.parse(file.read_text())))
            if names:
                found[str(file.relative_to(ROOT))] = names
    # Declarations are read by a subclass of the safe loader.
    assert found.pop("symphony_dask/client/declarations.py") == {"yaml.load"}
    assert set(found) == set(MAY_LOAD)


def loads_of(tree: ast.Module) -> Iterator[str]:
    """What in a module could run what it reads."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and set(node.module.split(".")) & LOADERS:
            for name in node.names:
                if name.name in ("loads", "load", "Unpickler", "deserialize"):
                    yield f"{node.module}.{name.name}"
        elif (isinstance(node, ast.ImportFrom) and any(name.name in LOADERS for name in node.names)) or isinstance(
            node, ast.Import
        ):
            aliases |= {name.asname or name.name: name.name for name in node.names if name.name in LOADERS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            module, _, function = name.rpartition(".")
            if name in FUNCTIONS or (module in aliases and function in ("loads", "load", "Unpickler", "open")):
                yield name
            if any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
            ):
                yield f"{name}(allow_pickle)"


def test_a_payload_is_never_unpickled(marker: Path) -> None:
    for bomb in bombs(marker):
        for payload in (bomb, b"\x01" + bomb, b"\x02" + bomb, b"\x02" + msgpack.packb(msgpack.ExtType(1, bomb))):
            for read_payload in (codec.decode, codec.parts, codec.form):
                try:
                    read_payload(payload)
                except BadInput:
                    pass
    header = array_codec.header_of("<f8", (1,)).replace(b"<f8", b"|O8")
    with pytest.raises(BadInput, match=r"dtype '\|O8'"):
        codec.decode(header + bytes(8))


def test_frames_and_payloads_on_the_lane_are_never_unpickled(serving: Serving, deploy: Deploy, marker: Path) -> None:
    model = deploy(models.same, profile="0.1,0.5")
    info = serving.client.sync(serving.client.scheduler.symphony_info)
    assert model(b"opens no link").endswith(b"link")
    large = model(np.zeros(20_000))
    assert len(large) == 20_000
    assert serving._lane._direct is not None
    worker_port = next(iter(serving._lane._direct._open.values())).port

    async def main() -> None:
        for bomb in bombs(marker):
            for port in (info["port"], worker_port):
                await send(port, bomb)
                for header in (bomb, msgpack.packb([Op.HELLO, bomb]), msgpack.packb([Op.HELLO, {"token": bomb}])):
                    await send(port, struct.pack("<II", len(header), len(bomb)) + header + bomb)
            client = ClientHello(token=info["token"])
            linked = LinkHello(token=info["token"], client=10**6, link=0)
            for payload in (bomb, b"\x01" + bomb, b"\x02" + bomb):
                done = asyncio.Event()
                lane, _ = await connect(
                    "127.0.0.1", info["port"], client, lambda *frame, done=done: done.set(), lambda *lost: None,
                    peer=None,
                )  # fmt: skip
                row = make_records(SUBMIT_ROW, 1, id=1, bytes=len(payload), model=model.number)
                lane.send(Submit(row), payload)
                await asyncio.wait_for(done.wait(), 20)
                link, _ = await connect(
                    "127.0.0.1", worker_port, linked, lambda *frame: None, lambda *lost: None, peer=None
                )
                link.send(Data(10**9, 0, make_column([1]), make_column([len(payload)])), payload)
                lane.close()
                link.close()

    asyncio.run(main())
    assert model(b"served") == b"served"


async def send(port: int, data: bytes) -> None:
    """Send bytes, and wait until the server has hung up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        pass
    finally:
        writer.close()


def test_bodies_of_http_are_never_unpickled(cluster: Cluster, deploy: Deploy, marker: Path) -> None:
    pytest.importorskip("uvicorn")
    from tests.helpers.gateway_process import GatewayProcess

    name = deploy(models.same, profile="0.1,0.5").name
    strings = deploy(models.same, profile="0.1,0.5", example=b"x").name
    with GatewayProcess(cluster.address) as gateway:
        for bomb in bombs(marker):
            element = struct.pack("<I", len(bomb)) + bomb
            size = {"binary_data_size": len(element)}
            tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": size}
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
            encoded = base64.b64encode(bomb).decode()
            for model in (name, strings):
                path = f"/v2/models/{model}/infer"
                lengths = {"Inference-Header-Content-Length": "0"}
                assert gateway.post(path, bomb, lengths).body.endswith(bomb)
                lengths = {"Inference-Header-Content-Length": str(len(head))}
                assert gateway.post(path, head.encode() + element, lengths).body.endswith(bomb)
                for kind in ("application/x-pickle", "application/octet-stream", "application/json"):
                    assert gateway.post(path, bomb, {"Content-Type": kind}).status in (400, 415)
                answer = gateway.post(f"/v1/models/{model}:predict", {"instances": [{"b64": encoded}]})
                assert answer.status == 200
        datatype = {"inputs": [{"name": "x", "shape": [1], "datatype": "OBJECT", "data": [encoded]}]}
        assert gateway.post(f"/v2/models/{name}/infer", datatype).status == 400


def test_declarations_build_no_objects(marker: Path) -> None:
    for tag in ("python/object/apply:pathlib.Path.touch", "python/object/new:pathlib.Path", "python/name:os.system"):
        text = f"models:\n  m:\n    model: !!{tag} [{str(marker)!r}]\n    slo: 1s\n"
        with pytest.raises(SymphonyError, match="could not determine a constructor"):
            read(text)
