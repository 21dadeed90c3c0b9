"""Runs as nobody would leave them: bits turned over, files cut, tables without columns, numbers drawn at random.

``python -m tests.helpers.runs.damaged RUN FIRST LAST COMMAND...`` damages RUN by each seed from FIRST to before LAST,
has each command look at it, and prints how they ended. Each is a fork of this process, which has everything compiled
and loaded.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.runs.forked import in_a_fork

#: Numbers that have broken things.
WILD = [
    -1, 0, 1, 2, 7, 8, 9, 63, 64, 255, 256, 1 << 15, 1 << 16, 1 << 26, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40,
    1 << 61, 1 << 62, (1 << 63) - 1, -(1 << 31), -(1 << 40), -(1 << 63),
]  # fmt: skip


def _number(rng: random.Random) -> int:
    return rng.choice(WILD) if rng.random() < 0.7 else rng.getrandbits(rng.randint(1, 63)) * rng.choice((1, 1, -1))


def _flip(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of it are others; none of an empty one."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _some_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.iterdir()))


def _turn_bits(folder: Path, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    path.write_bytes(_flip(path.read_bytes(), rng))


def _cut(folder: Path, rng: random.Random) -> None:
    path = _some_file(folder, rng)
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def _swap(folder: Path, rng: random.Random) -> None:
    a, b = rng.sample(sorted(folder.glob("*.parquet")), 2)
    first = a.read_bytes()
    shutil.copy(b, a)
    b.write_bytes(first)


def _change_info(folder: Path, rng: random.Random) -> None:
    path = folder / "run.json"
    info = json.loads(path.read_text())

    def spoil(value: Any, depth: int = 0) -> Any:
        if isinstance(value, dict) and value and depth < 6 and rng.random() < 0.9:
            key = rng.choice(sorted(value))
            if rng.random() < 0.2:
                return {k: v for k, v in value.items() if k != key}
            return {**value, key: spoil(value[key], depth + 1)}
        if isinstance(value, list) and value and depth < 6 and rng.random() < 0.9:
            i = rng.randrange(len(value))
            return [*value[:i], spoil(value[i], depth + 1), *value[i + 1 :]]
        return rng.choice([None, "x", "", -1, 1e308, 10**40, 1 << 63, [], {}, True, [[]], "\ud800", 0.5])

    path.write_text(json.dumps(spoil(info)))


def _table(folder: Path, rng: random.Random) -> tuple[Path, Any]:
    parts = sorted(folder.glob("*.parquet"))
    path = rng.choice([*parts, *(part for part in parts if part.name.startswith("events"))])
    return path, pq.read_table(path)


def _drop_column(folder: Path, rng: random.Random) -> None:
    path, table = _table(folder, rng)
    pq.write_table(table.drop_columns([rng.choice(table.column_names)]), path)


def _change_type(folder: Path, rng: random.Random) -> None:
    path, table = _table(folder, rng)
    i = rng.randrange(table.num_columns)
    n = table.num_rows
    other = rng.choice([
        pa.array([None] * n, pa.int64()), pa.array([0.5] * n), pa.array(["x"] * n), pa.array([[1]] * n),
        pa.array([b"\xff"] * n), pa.array([True] * n), pa.array([2**63] * n, pa.uint64()), pa.nulls(n),
        pa.array([0] * n, pa.timestamp("ns")), pa.array([7] * n, pa.int8()),
    ])  # fmt: skip
    pq.write_table(table.set_column(i, table.column_names[i], other), path)


def _change_rows(folder: Path, rng: random.Random) -> None:
    path, table = _table(folder, rng)
    rows = list(range(table.num_rows))
    kind = rng.randrange(4)
    if kind == 0:
        rng.shuffle(rows)
    elif kind == 1:
        rows = rows[: rng.randrange(len(rows) + 1)]
    elif kind == 2:
        rows += rows[-3:]
    else:
        del rows[rng.randrange(len(rows)) : rng.randrange(len(rows) + 1)]
    pq.write_table(table.take(pa.array(rows, pa.int64())), path)


def _change_numbers(folder: Path, rng: random.Random) -> None:
    """Numbers of a table, or texts, in a few rows or in all."""
    path, table = _table(folder, rng)
    for _ in range(rng.choice((1, 1, 3))):
        i = rng.randrange(table.num_columns)
        kind = table.schema.field(i).type
        values = table.column(i).to_pylist()
        every = rng.random() < 0.1
        for at in range(len(values)):
            if every or at == rng.randrange(len(values)) or rng.random() < 2 / len(values):
                values[at] = _value(kind, values[at], rng)
        table = table.set_column(i, table.column_names[i], pa.array(values, kind))
    pq.write_table(table, path)


def _value(kind: Any, was: Any, rng: random.Random) -> Any:
    if pa.types.is_int32(kind):
        return int(np.int64(_number(rng)).astype(np.int32))
    if pa.types.is_integer(kind):
        return _number(rng)
    if pa.types.is_binary(kind):
        return rng.choice([b"", was[:-1], was + b"\0", _flip(was, rng), rng.randbytes(rng.choice((8, 40, 400)))])
    return rng.choice(["", "x" * 3000, "step", "admit", "ok", "late", "cancel", "\N{SNOWMAN}"])


def _change_calls(folder: Path, rng: random.Random) -> None:
    """Arguments of one kind of the engine's calls are drawn at random."""
    path = folder / "events-000001.parquet"
    table = pq.read_table(path)
    ops = table.column("op").to_pylist()
    op = rng.choice(sorted(set(ops)))
    at = [i for i, found in enumerate(ops) if found == op]
    for name in rng.sample(["a", "b", "c", "d"], rng.choice((1, 1, 2, 4))):
        values = table.column(name).to_pylist()
        for i in rng.sample(at, min(len(at), rng.choice((1, 3, 1000)))):
            values[i] = _number(rng)
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.int64()))
    pq.write_table(table, path)


def _change_frames(folder: Path, rng: random.Random) -> None:
    """The data of calls: records of frames, l(b), what steps decided."""
    path = folder / "events-000001.parquet"
    table = pq.read_table(path)
    data = table.column("data").to_pylist()
    some = [i for i, one in enumerate(data) if one and i]
    for i in rng.sample(some, min(len(some), rng.choice((1, 3, 20)))):
        words = bytearray(data[i])
        for _ in range(rng.choice((1, 4))):
            at = rng.randrange(len(words) // 8 + 1) * 8
            words[at : at + 8] = _number(rng).to_bytes(8, "little", signed=True)
        data[i] = bytes(words)
    pq.write_table(table.set_column(table.column_names.index("data"), "data", pa.array(data, pa.binary())), path)


def _change_state(folder: Path, rng: random.Random) -> None:
    """The state that the events begin with: its sizes, or words of its arrays."""
    path = folder / "events-000001.parquet"
    table = pq.read_table(path)
    data = table.column("data").to_pylist()
    sizes, arrays = msgpack.unpackb(data[0])
    if rng.random() < 0.3:
        sizes[rng.randrange(len(sizes))] = max(-(1 << 63), _number(rng))
    else:
        for _ in range(rng.choice((1, 1, 2, 6))):
            i = rng.randrange(len(arrays))
            words = bytearray(arrays[i])
            width = rng.choice((1, 4, 8))
            at = rng.randrange(max(1, len(words) // width)) * width
            words[at : at + width] = (_number(rng) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
            arrays[i] = bytes(words[: len(arrays[i])])
    data[0] = msgpack.packb([sizes, arrays])
    pq.write_table(table.set_column(table.column_names.index("data"), "data", pa.array(data, pa.binary())), path)


#: Ways to damage a run folder; those of the events are of recorded runs.
KINDS: list[Callable[[Path, random.Random], None]] = [
    _turn_bits, _cut, _swap, _change_info, _drop_column, _change_type, _change_rows, _change_numbers,
]  # fmt: skip
OF_EVENTS = [_change_calls, _change_calls, _change_frames, _change_state, _change_state]


def damage(run: Path, target: Path, seed: int) -> str:
    """A copy of ``run``, damaged as ``seed`` says; returns how."""
    rng = random.Random(seed)
    shutil.copytree(run, target)
    kinds = KINDS + OF_EVENTS if (run / "events-000001.parquet").exists() else KINDS
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        kind = rng.choice(kinds)
        try:
            kind(target, rng)
        except Exception as error:  # what was damaged already cannot always be damaged once more
            done.append(f"{kind.__name__} not ({type(error).__name__})")
            continue
        done.append(kind.__name__)
    return ", ".join(done)


#: What each command is given; RUN is the damaged folder, OUT a place for what it writes.
COMMANDS = {
    "verify": "verify RUN",
    "explain": "explain RUN --request 5",
    "why": "explain RUN --why dropped",
    "report": "report RUN --out OUT",
    "whatif": "whatif RUN --gpus 2",
    "plan": "plan RUN",
    "replay": "replay RUN --simulate --folder OUT",
    "simulate": "simulate RUN --gpus 2",
    "validate": "trace validate RUN",
    "info": "trace info RUN",
    "scale": "trace scale RUN OUT --rate 2",
    "autoscale": "autoscale simulate RUN",
}


def make_run(folder: Path) -> Path:
    """A run of 3 models on 2 GPUs, simulated, with the events of an engine that was led through about all it can."""
    from symphony_dask.engine.engine import Engine
    from symphony_dask.engine.events import EVENT, Journal
    from symphony_dask.engine.journal import dump
    from symphony_dask.engine.latency_profile import LatencyProfile
    from symphony_dask.trace.columns import Events, events_table
    from symphony_dask.trace.folder import write_part
    from workloads.simulation.record import record
    from workloads.simulation.result import SimModel
    from workloads.simulation.simulate import simulate

    ms, rng = 1_000_000, np.random.default_rng(1)
    profile = LatencyProfile(1, 5, 16)
    models = [SimModel(f"m{i}", profile, (30 + i) * ms) for i in range(3)]
    arrivals, choices = np.sort(rng.integers(0, 1000 * ms, 600)), rng.integers(0, 3, 600).astype(np.int32)
    record(simulate(models, 2, arrivals, choices, policy="deferred"), folder)

    engine = Engine(max_requests=64)
    for _ in range(2):
        engine.add_model(ms, slo_ns=30 * ms, latency_ns={0: profile.latency_ns()}, queue_limit=30)
        engine.add_gpu(ms, control_ns=ms // 5)
    journal = engine.journal = Journal()
    host = _Host(engine, journal)
    journal.note("state", ms, data=dump(engine))
    for number in range(2):
        host.wire(number, number)
    now, flying = ms, []
    for i in range(120):
        now += int(rng.integers(ms // 2, 3 * ms))
        host.admit(now, int(rng.integers(1, 5)), rng)
        if i % 7 == 0:
            engine.cancel(now, int(rng.integers(64)))
        if i % 30 == 5:
            engine.policy = ("eager", "deferred", "timeout(0.3)", "adaptive")[i // 30]
            engine.set_control(now, ms // 4)
            engine.set_control(now, ms // 3, 0)
            engine.set_slack(ms // 2, 0.05)
        if i == 40:
            engine.add_model(now, slo_ns=40 * ms, latency_ns={0: profile.latency_ns()})
            host.wire(2, 2)
            engine.update_profile(now, 1, 0, profile.latency_ns() * 2)
            engine.set_eligible(now, 0, 1, False)
        if i in (60, 80):
            gone = engine.add_gpu(now) if i == 60 else 1
            engine.drain_gpu(now, gone)
            engine.remove_gpu(now, gone)
            flying = [flight for flight in flying if flight[1] != gone]
        if i == 100:
            engine.remove_model(now, 1)
        while flying and flying[0][0] <= now:
            end, gpu, batch, start = flying.pop(0)
            engine.completed(now, gpu, batch, start, end)
        for row in engine.advance(now).batches:
            flying.append((int(row["end"]), int(row["gpu"]), int(row["batch"]), int(row["start"])))
        flying.sort()
    rows, data = journal.take()
    chunk = Events(0, 0, 0, np.frombuffer(rows, EVENT), data)
    write_part(folder, "events", 1, events_table([chunk]))
    info = json.loads((folder / "run.json").read_text())
    info["counts"]["events"] = len(chunk.rows)
    (folder / "run.json").write_text(json.dumps(info | {"engine_clock_ns": 0, "lost_rows": 0}))
    return folder


class _Host:
    """What the dispatcher does of it: frames, and numbers on the wire."""

    def __init__(self, engine: Any, journal: Any) -> None:
        from symphony_dask.dispatcher.request_table import RequestTable

        self.engine, self.journal = engine, journal
        self.table = RequestTable(64)
        self.index_of, self.slo_of = np.full(8, -1, np.int32), np.zeros(8, np.int64)

    def wire(self, number: int, model: int) -> None:
        self.index_of[number], self.slo_of[number] = model, 30_000_000
        self.journal.note("wire", 1_000_000, number, model, 30_000_000)

    def admit(self, now: int, n: int, rng: Any) -> None:
        from symphony_dask.wire.records import SUBMIT_ROW, make_records

        fields = {"id": np.arange(n), "model": rng.integers(-1, 4, n), "priority": rng.integers(0, 3, n), "bytes": 2}
        rows = make_records(SUBMIT_ROW, n, **fields)
        found = self.table.admit(
            self.engine, rows, memoryview(bytes(2 * n)), client=0, now=now, margin_ns=100_000, care_ns=50_000,
            index_of=self.index_of, slo_of=self.slo_of, serving=True,
        )  # fmt: skip
        assert found is not None


def main(run: Path, first: int, last: int, names: Sequence[str]) -> dict[str, Any]:
    """Damage ``run`` by each seed, and have each command look; returns how they ended, and what ended badly."""
    import workloads.cli.registry  # noqa: F401 - the commands' modules are loaded once, not in each fork
    from workloads.analysis.verify import verify
    from workloads.compare.policies import compile_policies

    if "verify" in names:
        assert verify(run).differing == 0
    if {"whatif", "plan", "replay", "simulate"} & set(names):
        compile_policies(["adaptive", "deferred"])
    ended: dict[str, int] = {}
    faults = []
    for seed in range(first, last):
        with tempfile.TemporaryDirectory() as folder:
            damaged = Path(folder, "run")
            how = damage(run, damaged, seed)
            for name in names:
                places = {"RUN": str(damaged), "OUT": str(Path(folder, f"out-{name}"))}
                found = in_a_fork([places.get(word, word) for word in COMMANDS[name].split()], Path(folder, "."))
                kind = found.how or ("ok" if found.status == 0 else "one line")
                ended[f"{name}: {kind}"] = ended.get(f"{name}: {kind}", 0) + 1
                if found.how:
                    print(seed, name, how, found.how, file=sys.stderr, flush=True)
                    faults.append([seed, name, how, found.how, found.said[-400:]])
    return {"ended": ended, "faults": faults}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
