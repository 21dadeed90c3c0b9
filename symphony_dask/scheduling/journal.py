"""An engine's state as bytes, and its calls again: a recorded run is replayed decision for decision.

An engine with a ``journal`` adds a row to it for each call that changes it, (op, now, a, b, c, d, data):

    op              a, b, c, d                                      data
    state                                                           ``dump``: where the journal begins
    policy                                                          its name
    slack           slack_ns                                        share, f8
    control         control_ns, gpu (-1: the one of windows)
    add_model       slo_ns, queue_limit, number of GPU classes      for each: class i8, l(b) i8[]
    update_profile  model, class                                    l(b) i8[]
    remove_model    model
    add_gpu         class, rank (-1: none), control_ns, gpu
    drain_gpu       gpu
    remove_gpu      gpu
    able            model, gpu, whether it can run it
    wire            number on the wire, model (-1: none), slo_ns    (from the host)
    admit           one_way_ns, margin_ns, served, blob bytes       records of a frame (from the host, ``intake.admit``)
    cancel          slot
    completed       gpu, batch, start_ns, end_ns
    step            batches, drops                                  what was decided: batches, members, drops

served is 1 + care_ns, or 0 if there is no GPU. Times are the engine's own.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from symphony_dask.scheduling import intake
from symphony_dask.scheduling.engine import Engine
from symphony_dask.scheduling.state import EVICTED, Profiles, State, fielded, make_profiles, make_state, records


def dump(engine: Engine) -> bytes:
    """All of the engine's state."""
    s = engine.state
    sizes = (len(s.req), len(s.mod), len(s.gpu), s.lat.shape[1], s.lat.shape[2] - 2)
    arrays = [np.asarray(array).tobytes() for array in (*s, *engine.profiles)]
    packed: bytes = msgpack.packb([sizes, arrays])
    return packed


def load(data: bytes) -> Engine:
    """An engine in the state that was dumped; raises ``ValueError`` if another version of the engine dumped it."""
    sizes, arrays = msgpack.unpackb(data)
    requests, models, gpus, classes, max_batch = sizes
    state = make_state(requests, models, gpus, classes, max_batch)
    profiles = make_profiles(models, classes, max_batch)
    own = (*state, *profiles)
    if [array.nbytes for array in own] != [len(raw) for raw in arrays]:
        raise ValueError("the engine's state has another layout: it was recorded by another version of symphony-dask")
    for array, raw in zip(own, arrays, strict=True):
        plain = np.asarray(array)
        plain[...] = np.frombuffer(raw, plain.dtype).reshape(plain.shape)
    engine = Engine(max_requests=1)
    engine.state, engine.profiles = State(*own[: len(state)]), Profiles(*own[len(state) :])
    return engine


class Replayer:
    """An engine, and what its host knew, led through a journal.

    state: of the first event. rows: dtype of a frame's records.
    """

    def __init__(self, state: bytes, rows: np.dtype[Any]) -> None:
        self.engine = load(state)
        self._rows = rows
        self._entries = records(len(self.engine.state.req), intake.ENTRY)
        self._index_of = np.full(64, -1, np.int32)
        self._slo_of = np.zeros(64, np.int64)
        #: How many batches and drops the last step decided.
        self.last = (0, 0)

    def apply(self, op: str, now: int, a: int, b: int, c: int, d: int, data: bytes) -> bytes | None:
        """Make the call of one event; returns what a step decides. Raises ``ValueError`` for an unknown ``op``."""
        engine = self.engine
        if op == "admit":
            self._admit(now, a, b, c, d, np.frombuffer(data, self._rows))
        elif op == "step":
            decisions, _ = engine.step(now)
            self.last = len(decisions.batches), len(decisions.drops)
            return b"".join(part.tobytes() for part in decisions)
        elif op == "completed":
            engine.completed(now, a, b, c, d)
        elif op == "cancel":
            engine.cancel(now, a)
        elif op == "control":
            engine.set_control(now, a, None if b < 0 else b)
        elif op == "slack":
            engine.set_slack(a, float(np.frombuffer(data, np.float64)[0]))
        elif op == "policy":
            engine.policy = data.decode()
        elif op == "wire":
            self._wire(a, b, c)
        elif op == "add_gpu":
            engine.add_gpu(now, gpu_class=a, rank=None if b < 0 else b, control_ns=c)
        elif op == "drain_gpu":
            engine.drain_gpu(now, a)
        elif op == "remove_gpu":
            engine.remove_gpu(now, a)
        elif op == "able":
            engine.set_able(now, a, b, bool(c))
        elif op == "add_model":
            tables = np.frombuffer(data, np.int64).reshape(c, -1)
            engine.add_model(now, slo_ns=a, latency_ns={int(t[0]): t[1:] for t in tables}, queue_limit=b)
        elif op == "update_profile":
            engine.update_profile(now, a, b, np.frombuffer(data, np.int64))
        elif op == "remove_model":
            engine.remove_model(now, a)
        else:
            raise ValueError(f"event {op!r} is unknown")
        return None

    def _admit(self, now: int, one_way: int, margin: int, served: int, blob_bytes: int, rows: npt.NDArray[Any]) -> None:
        n = len(rows)
        intake.admit(
            self.engine.state, self._entries, self._index_of, self._slo_of, fielded(rows), blob_bytes, 0, now, one_way,
            margin, max(served - 1, 0), served > 0, np.empty(n, np.int32), records(max(n, 1), EVICTED),
        )  # fmt: skip

    def _wire(self, number: int, model: int, slo_ns: int) -> None:
        while number >= len(self._index_of):
            self._index_of = np.append(self._index_of, np.full_like(self._index_of, -1))
            self._slo_of = np.append(self._slo_of, np.zeros_like(self._slo_of))
        self._index_of[number] = model
        self._slo_of[number] = slo_ns
