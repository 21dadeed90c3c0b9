"""Stores an engine's state as bytes, and makes its calls again: a recorded run is replayed decision for decision.

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
    in_hand         in_hand_ns, of each admit from here on          (from the host)
    admit           one_way_ns, margin_ns, served, blob bytes       records of a frame (from the host, ``admit``)
    cancel          slot
    completed       gpu, batch, start_ns, end_ns
    batching        model, prefers_gpus, delay                      the name of its own policy, or nothing
    step            batches, drops                                  what was decided: batches, members, drops

served is 1 + care_ns, or 0 if there is no GPU. Times are the engine's own.

A journal comes from a file, and may be damaged or of somebody else. So nothing of it is believed: all that leads to an
index, a size or a time is looked at before compiled code sees it (``bounds``), and a fault is a ``ValueError``.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from symphony_dask.engine import bounds, request_kernels
from symphony_dask.engine.batching import PREFER, Batching
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.state import (
    BATCH,
    DEPTH,
    EVICTED,
    OLDER_SCALARS,
    Profiles,
    State,
    aside_words,
    fielded,
    make_profiles,
    make_state,
    records,
)

#: Numbers of models on the wire are below this.
MOST_NUMBERS = 1 << 22

_OTHER = "the engine's state has another layout: it was recorded by another version of symphony-dask, or is damaged"


def dump(engine: Engine) -> bytes:
    """All of the engine's state."""
    s = engine.state
    sizes = (len(s.req), len(s.mod), len(s.gpu), s.lat.shape[1], s.lat.shape[2] - 2)
    arrays = [np.asarray(array).tobytes() for array in (*s, *engine.profiles)]
    packed: bytes = msgpack.packb([sizes, arrays])
    return packed


def load(data: bytes) -> Engine:
    """An engine in the state that was dumped; raises ``ValueError`` if another version of the engine dumped it, or if
    it is none that an engine can be in.
    """
    try:
        sizes, arrays = msgpack.unpackb(data)
        requests, models, gpus, classes, max_batch = sizes
        given = [len(raw) for raw in arrays if isinstance(raw, bytes)]
    except Exception as error:  # msgpack's have no class in common
        raise ValueError(f"the engine's state cannot be read ({type(error).__name__})") from None
    if not _are_there(sizes, given):
        raise ValueError(_OTHER)
    state = make_state(requests, models, gpus, classes, max_batch)
    profiles = make_profiles(models, classes, max_batch)
    own = (*state, *profiles)
    if given[0] == OLDER_SCALARS:  # recorded before ``rules``: what it lacks is 0
        arrays[0] += bytes(state.g.nbytes - OLDER_SCALARS)
        given[0] = state.g.nbytes
    if [array.nbytes for array in own] != given:
        raise ValueError(_OTHER)
    for array, raw in zip(own, arrays, strict=True):
        plain = np.asarray(array)
        plain[...] = np.frombuffer(raw, plain.dtype).reshape(plain.shape)
    try:
        bounds.check(state, profiles)
    except ValueError as error:
        raise ValueError(f"the engine's state is damaged: {error}") from None
    engine = Engine(max_requests=1)
    engine.state, engine.profiles = state, profiles
    return engine


def _are_there(sizes: list[Any], given: list[int]) -> bool:
    """Whether arrays of so many bytes can be those of a state of these sizes, so that it is safe to make one."""
    names = (*State._fields, *Profiles._fields)
    if len(given) != len(names) or not all(isinstance(size, int) and size >= 1 for size in sizes):
        return False
    requests, models, gpus, classes, max_batch = sizes
    found = dict(zip(names, given, strict=True))
    most = models <= bounds.MOST_MODELS and gpus <= bounds.MOST_GPUS and max_batch <= bounds.MOST_BATCH
    return most and all(
        found[name] == expected
        for name, expected in {
            "slots": 4 * requests,
            "dirty": 4 * models,
            "present": 4 * classes,
            "batches": DEPTH * gpus * BATCH.itemsize,
            "lat": 8 * (models + 1) * classes * (max_batch + 2),
            "aside": 4 * aside_words(models, gpus),
        }.items()
    )  # fmt: skip


class Replayer:
    """An engine, and what its host knew, led through a journal.

    state: of the first event. rows: dtype of a frame's records. Raises ``ValueError``, as ``load`` does.
    """

    def __init__(self, state: bytes, rows: np.dtype[Any]) -> None:
        self.engine = load(state)
        self._rows = rows
        self._entries = records(len(self.engine.state.req), request_kernels.ENTRY)
        self._index_of = np.full(64, -1, np.int32)
        self._slo_of = np.zeros(64, np.int64)
        self._now = self._in_hand = 0
        #: How many batches and drops the last step decided.
        self.last = (0, 0)

    def apply(self, op: str, now: int, a: int, b: int, c: int, d: int, data: bytes) -> bytes | None:
        """Make the call of one event; returns what a step decides. Raises ``ValueError`` for an event that no engine
        with this state could have written down.
        """
        engine = self.engine
        bounds.within("the time of an event", now, self._now, bounds.LATEST_CALL)
        self._now = now
        if op == "admit":
            self._admit(now, a, b, c, d, np.frombuffer(data, self._rows))
        elif op == "in_hand":
            bounds.within("what a client takes with answers", a, 0, bounds.LONGEST)
            self._in_hand = a
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
            (share,) = np.frombuffer(data, np.float64).tolist()
            engine.set_slack(a, share)
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
            engine.set_eligible(now, a, b, bool(c))
        elif op == "add_model":
            tables = np.frombuffer(data, np.int64).reshape(c, -1)
            engine.add_model(now, slo_ns=a, latency_ns={int(t[0]): t[1:] for t in tables}, queue_limit=b)
        elif op == "batching":
            delay_ns = c if c >= 0 else None
            engine.set_batching(now, a, Batching(data.decode() or None, PREFER[b == 1], delay_ns))
        elif op == "update_profile":
            engine.update_profile(now, a, b, np.frombuffer(data, np.int64))
        elif op == "remove_model":
            engine.remove_model(now, a)
        else:
            raise ValueError(f"event {op!r} is unknown")
        return None

    def _admit(self, now: int, one_way: int, margin: int, served: int, blob_bytes: int, rows: npt.NDArray[Any]) -> None:
        n = len(rows)
        bounds.within("the latency of a frame", one_way, -bounds.LONGEST, bounds.LONGEST)
        bounds.within("the margin of a frame", margin, -bounds.LONGEST, bounds.LONGEST)
        bounds.within("the care of a frame", served, 0, bounds.LONGEST)
        bounds.within("the bytes of a frame", blob_bytes, 0, bounds.LATEST)
        request_kernels.admit(
            self.engine.state, self._entries, self._index_of, self._slo_of, fielded(rows), blob_bytes, 0, now, one_way,
            margin, max(served - 1, 0), self._in_hand, served > 0, np.empty(n, np.int32), records(max(n, 1), EVICTED),
        )  # fmt: skip

    def _wire(self, number: int, model: int, slo_ns: int) -> None:
        bounds.within("the number of a model", number, 0, MOST_NUMBERS - 1)
        bounds.within("a model", model, -1, bounds.MOST_MODELS - 1)
        bounds.within("the SLO of a model", slo_ns, -bounds.LATEST, bounds.LATEST)
        while number >= len(self._index_of):
            self._index_of = np.append(self._index_of, np.full_like(self._index_of, -1))
            self._slo_of = np.append(self._slo_of, np.zeros_like(self._slo_of))
        self._index_of[number] = model
        self._slo_of[number] = slo_ns
