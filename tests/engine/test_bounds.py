"""Nothing that a caller or a file gives leads compiled code out of its arrays; what is written beside them is seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from symphony_dask.engine import bounds, compiled_calls
from symphony_dask.engine.engine import Engine
from symphony_dask.engine.journal import Replayer, dump, load
from symphony_dask.engine.native import memory
from symphony_dask.engine.native.compiled import CHECKED
from symphony_dask.engine.state import Profiles, State, is_plain
from symphony_dask.wire.records import SUBMIT_ROW, make_records
from tests.helpers.engines.engines import advance, make_engine, ns, submit, table
from workloads.parallel_engine import rank_thread
from workloads.parallel_engine.ring import one_ring, publish, writable
from workloads.simulation.batch_ends import begin, make_ends

FAR = 1 << 26


def busy_engine() -> Engine:
    """Batches at two GPUs, requests queued of two models and of several priorities, a GPU that cannot run a model."""
    engine = make_engine(models=2, gpus=3, exact=False, max_requests=20, policy="eager", max_batch=4)
    submit(engine, 0, 20, 21, 22, 23, 24, 25)
    advance(engine, 0)
    engine.set_eligible(0, 1, 2, False)
    submit(engine, 1, 24, 30, 26)
    submit(engine, 1, 60, 50, model=1, priority=2)
    engine.cancel(ns(1), 2)
    engine.validate()
    return engine


@pytest.mark.parametrize("seed", range(4))
def test_what_leaves_its_queue_after_all_were_dropped_writes_nothing_beside_the_output(seed: int) -> None:
    rng = random.Random(seed)
    engine = make_engine(max_requests=6, policy="eager")
    submit(engine, 1, *[1] * 6)
    assert len(advance(engine, 1)[1]) == 6
    slots = submit(engine, 2, *[30] * 6)
    for slot in rng.sample(slots, 3):
        assert engine.cancel(ns(2), slot)
    submit(engine, 2, *[40] * 6, priority=1)  # three find room, and three have others evicted
    engine.validate()


def test_a_write_beside_an_array_is_seen() -> None:
    for name in (*State._fields, *Profiles._fields):
        engine = make_engine(max_requests=6)
        array = getattr(engine.state, name, None)
        array = getattr(engine.profiles, name) if array is None else array
        engine.validate()
        space: Any = array
        while space.base is not None:
            space = space.base
        begin = memory.LINE + -space.ctypes.data % memory.LINE
        for at in (begin - 1, begin + len(space) - 3 * memory.LINE):
            kept, space[at] = int(space[at]), 0
            with pytest.raises(ValueError, match=r"memory beside .* was written to"):
                engine.validate()
            space[at] = kept
        engine.validate()


CALLS: list[tuple[str, Callable[[Engine, int], Any]]] = [
    ("a model", lambda e, i: e.remove_model(0, i)),
    ("a model", lambda e, i: e.update_profile(0, i, 0, table(1, 5))),
    ("a model", lambda e, i: e.set_eligible(0, i, 0, False)),
    ("a model", lambda e, i: e.can_run(i, 0)),
    ("a model", lambda e, i: e.queued(i)),
    ("a model", lambda e, i: e.work(i)),
    ("a model", lambda e, i: e.target(i)),
    ("a model", lambda e, i: e.drift(i)),
    ("a GPU", lambda e, i: e.drain_gpu(0, i)),
    ("a GPU", lambda e, i: e.remove_gpu(0, i)),
    ("a GPU", lambda e, i: e.set_eligible(0, 0, i, False)),
    ("a GPU", lambda e, i: e.can_run(0, i)),
    ("a GPU", lambda e, i: e.in_flight(i)),
    ("a GPU", lambda e, i: e.completed(0, i, 0, 0, 1)),
    ("a GPU", lambda e, i: e.slowdown(i)),
    ("a GPU", lambda e, i: e.is_slow(i)),
    ("a GPU", lambda e, i: e.set_control(0, 1, i)),
    ("a GPU class", lambda e, i: e.drift(0, i)),
    ("a slot", lambda e, i: e.cancel(0, i)),
]


@pytest.mark.parametrize("index", [-1, 256, FAR, -FAR])
@pytest.mark.parametrize(("what", "call"), CALLS)
def test_an_index_that_the_engine_does_not_have_is_named(
    what: str, call: Callable[[Engine, int], Any], index: int
) -> None:
    engine = make_engine()
    before = dump(engine)
    with pytest.raises(ValueError, match=f"{index} is not there"):
        call(engine, index)
    assert dump(engine) == before


def test_a_gpu_or_a_model_that_is_gone_is_not_there() -> None:
    engine = make_engine(gpus=2)
    engine.remove_gpu(0, 1)
    engine.remove_model(0, 0)
    for call in (engine.remove_gpu, engine.drain_gpu):
        with pytest.raises(ValueError, match="GPU 1 is not there: it was removed, or never added"):
            call(0, 1)
    with pytest.raises(ValueError, match="model 0 is not there: it was removed, or never added"):
        engine.remove_model(0, 0)


WILD: list[tuple[str, Callable[[Engine], Any]]] = [
    ("gpu_class is 1024: it must be from 0 to 1023", lambda e: e.add_gpu(0, gpu_class=1024)),
    ("gpu_class is -1", lambda e: e.add_gpu(0, gpu_class=-1)),
    ("rank is", lambda e: e.add_gpu(0, rank=1 << 40)),
    ("control_ns is", lambda e: e.add_gpu(0, control_ns=1 << 60)),
    ("max_batch is 0", lambda e: e.add_model(0, slo_ns=1, latency_ns={0: np.zeros(2, np.int64)})),
    ("max_batch is 5000", lambda e: e.add_model(0, slo_ns=1, latency_ns={0: np.zeros(5002, np.int64)})),
    ("gpu_class is 1099511627776", lambda e: e.add_model(0, slo_ns=1, latency_ns={1 << 40: table(1, 5)})),
    (r"l\(b\) is -5", lambda e: e.update_profile(0, 0, 0, np.full(130, -5, np.int64))),
    ("slo_ns is", lambda e: e.add_model(0, slo_ns=1 << 60, latency_ns={0: table(1, 5)})),
    ("queue_limit is", lambda e: e.add_model(0, slo_ns=1, latency_ns={0: table(1, 5)}, queue_limit=1 << 40)),
    ("priority is 8", lambda e: submit(e, 0, 9, priority=8)),
    ("priority is -1", lambda e: submit(e, 0, 9, priority=-1)),
    ("2 models, 1 deadlines, 1 requests", lambda e: e.submit(0, *(np.zeros(n, np.int32) for n in (2, 1, 1)))),
    ("times must be within", lambda e: e.completed(0, 0, 0, 0, 1 << 63)),
    ("share of slack is nan", lambda e: e.set_slack(0, float("nan"))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "call"), WILD)
def test_a_number_that_the_engine_has_no_room_for_is_named(text: str, call: Callable[[Engine], Any]) -> None:
    engine = make_engine()
    with pytest.raises(ValueError, match=text):
        call(engine)
    engine.validate()


EVENTS: list[tuple[Any, ...]] = [
    ("control", 0, 4, 9, 0, 0, b""),
    ("control", 0, 4, FAR, 0, 0, b""),
    ("control", 0, 1 << 60, -1, 0, 0, b""),
    ("slack", 0, 0, 0, 0, 0, b"1234"),
    ("slack", 0, 0, 0, 0, 0, np.float64("inf").tobytes()),
    ("policy", 0, 0, 0, 0, 0, b"\xff"),
    ("cancel", 0, FAR, 0, 0, 0, b""),
    ("cancel", 0, -1, 0, 0, 0, b""),
    ("completed", 0, 9, 0, 0, 0, b""),
    ("drain_gpu", 0, 7, 0, 0, 0, b""),
    ("remove_gpu", 0, -1, 0, 0, 0, b""),
    ("remove_model", 0, 7, 0, 0, 0, b""),
    ("able", 0, FAR, 0, 0, 0, b""),
    ("add_gpu", 0, 1 << 15, -1, 0, 8, b""),
    ("add_model", 0, 1, 1, 0, 0, b""),
    ("add_model", 0, 1, 1, 1, 0, np.arange(2).tobytes()),
    ("add_model", 0, 1, 1, 1 << 40, 0, np.arange(9).tobytes()),
    ("update_profile", 0, 0, 1 << 40, 0, 0, table(1, 5).tobytes()),
    ("wire", 0, 1 << 40, 0, 0, 0, b""),
    ("wire", 0, -1, 0, 0, 0, b""),
    ("wire", 0, 0, 1 << 40, 0, 0, b""),
    ("admit", 0, 1 << 62, 0, 1, 0, make_records(SUBMIT_ROW, 1).tobytes()),
    ("admit", 0, 0, 0, 1, 0, b"12345"),
    ("in_hand", 0, -1, 0, 0, 0, b""),
    ("in_hand", 0, 1 << 62, 0, 0, 0, b""),
    ("step", 1 << 62, 0, 0, 0, 0, b""),
    ("step", -1, 0, 0, 0, 0, b""),
    ("shout", 0, 0, 0, 0, 0, b""),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event[0]}-{event[1:5]}")
def test_an_event_that_no_engine_wrote_down_is_refused(event: tuple[Any, ...]) -> None:
    replayer = Replayer(dump(busy_engine()), SUBMIT_ROW)
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own text
        replayer.apply(*event)
    replayer.engine.validate()


def test_time_does_not_go_back_in_a_journal() -> None:
    replayer = Replayer(dump(make_engine()), SUBMIT_ROW)
    replayer.apply("step", 9, 0, 0, 0, 0, b"")
    with pytest.raises(ValueError, match="the time of an event is 8: it must be from 9 to"):
        replayer.apply("step", 8, 0, 0, 0, 0, b"")


def test_a_state_is_what_was_dumped() -> None:
    engine = busy_engine()
    assert dump(load(dump(engine))) == dump(engine)


def test_a_state_with_other_sizes_is_refused_before_it_takes_memory() -> None:
    sizes, arrays = msgpack.unpackb(dump(busy_engine()))
    for i in range(len(sizes)):
        for size in (0, -1, sizes[i] + 1, 1 << 40):
            wrong = msgpack.packb([[*sizes[:i], size, *sizes[i + 1 :]], arrays])
            with pytest.raises(ValueError, match="another layout"):
                load(wrong)
    with pytest.raises(ValueError, match="another layout"):
        load(msgpack.packb([sizes, arrays[:-1]]))


@pytest.mark.parametrize("data", [b"", b"\x93", b"\xc1", b"[]", msgpack.packb([1, 2]), msgpack.packb([[1] * 5, 7])])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"the engine's state cannot be read|another layout"):
        load(data)


#: A word of an array of the state that compiled code would follow, or count with, and what stands there instead.
SPOILT: list[tuple[str, str, int, int]] = [
    ("g", "n_slots", 0, 21), ("g", "n_dirty", 0, 9), ("g", "n_drops", 0, FAR), ("g", "policy", 0, 6),
    ("req", "model", 7, 8), ("req", "prev", 7, FAR), ("req", "state", 7, 9), ("req", "state", 0, 0),
    ("req", "levels", 7, 7), ("req", "priority", 9, -1), ("req", "deadline", 7, 1),
    ("mod", "n", 0, 4), ("mod", "first", 0, -1), ("mod", "skipped", 0, 2), ("mod", "raised", 1, 1),
    ("mod", "max_batch", 0, 129), ("mod", "gpu_class", 0, 2), ("mod", "in_flight", 0, 0), ("mod", "state", 0, 0),
    ("mod", "dirty", 0, 0), ("gpu", "gpu_class", 0, -1), ("gpu", "n_flight", 2, 3), ("gpu", "state", 0, 1),
    ("flight", "model", 0, 8), ("flight", "n", 0, 5), ("flight", "n", 0, 0), ("flight", "row", 0, 6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "at", "value"), SPOILT)
def test_a_state_that_would_lead_out_of_its_arrays_is_refused(name: str, field: str, at: int, value: int) -> None:
    engine = busy_engine()
    getattr(engine.state, name)[field][at] = value
    with pytest.raises(ValueError, match="the engine's state is damaged"):
        load(dump(engine))


@pytest.mark.parametrize("name", ["nxt", "head", "tail", "slots", "pending", "ready", "busy", "open", "dirty"])
def test_links_heaps_and_lists_that_lead_elsewhere_are_refused(name: str) -> None:
    engine = busy_engine()
    array = getattr(engine.state, name)
    for value in (FAR, -2, 3):
        kept = array.copy()
        array.reshape(-1)[:] = value if name != "nxt" else array.reshape(-1)
        if name == "nxt":
            array[:, 0] = value
        with pytest.raises(ValueError, match="the engine's state is damaged"):
            load(dump(engine))
        array[...] = kept
    load(dump(engine))


def test_the_compiled_functions_take_no_array_of_another_kind() -> None:
    state = make_engine().state
    for name, array in (
        ("tail", state.tail.astype(np.int64)),
        ("lat", state.lat[..., ::2]),
        ("drops", state.slots[::2]),
    ):
        with pytest.raises(ValueError, match=f"array {name!r} of an engine is"):
            compiled_calls.ArrayTable(state._replace(**{name: array}))


@pytest.mark.skipif(not CHECKED or is_plain(), reason="looked at where code is compiled with checks")
def test_a_table_of_before_the_engine_grew_is_refused() -> None:
    engine = make_engine()
    old = engine.table
    compiled_calls.step(old, 0)
    for _ in range(9):
        engine.add_gpu(0)
    with pytest.raises(ValueError, match="take its table anew"):
        compiled_calls.step(old, 0)
    compiled_calls.step(engine.table, 0)


@pytest.mark.skipif(not CHECKED or is_plain(), reason="looked at where code is compiled with checks")
def test_compiled_code_with_checks_refuses_an_index() -> None:
    engine = make_engine()
    engine.state.g["n_slots"] = 257
    with pytest.raises(IndexError):
        submit(engine, 0, 9)


def test_a_grant_for_which_the_ring_has_no_room_is_not_made() -> None:
    r = rank_thread.make_ranks([1], 1, 0, 0)
    ring = one_ring(r.grants, 0)
    while writable(ring) >= 0:
        publish(ring)
    cells = r.grants.cells.copy()
    report = np.zeros(8, np.int64)
    report[rank_thread.GPU], report[rank_thread.READY], report[rank_thread.CLOSE] = -1, 1, 9
    rank_thread._take(r, report, 0)
    assert rank_thread.step(r, 0) == 0
    assert (r.grants.cells == cells).all()
    assert r.models["granted"][0] == 0
    assert r.ready[0, 1] == r.open[0, 1] == 1


def test_a_gpu_that_runs_as_many_batches_as_it_can_is_given_no_other() -> None:
    ends = make_ends(2)
    assert [begin(ends, 0, batch, 0, 5, 0) for batch in range(2)] == [5, 10]
    for gpu in (0, 2, -1):
        with pytest.raises(IndexError, match="as many as it can, or that is not there"):
            begin(ends, gpu, 2, 0, 5, 0)


def test_ranges_are_for_numbers_and_arrays_and_refuse_what_is_none() -> None:
    bounds.within("it", 3, 1, 3)
    bounds.within("it", np.empty(0), 1, 3)
    for value in (0, 4, np.array([1, 4]), float("nan")):
        with pytest.raises(ValueError, match=r"it is .*: it must be from 1 to 3"):
            bounds.within("it", value, 1, 3)
