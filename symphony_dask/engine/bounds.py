"""Keeps compiled code inside its arrays: checks what a caller gives, and what must hold of a state.

Compiled code takes every number of the state for what it is meant to be. The engine keeps it so; a state that comes
from a file (``journal``) is looked at before any compiled code sees it. Tests look after every event
(``Engine.validate``), also at the guards around the arrays.

Times are bounded so that sums of a few of them stay within 64 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from symphony_dask.engine.latency_profile import LONGEST_NS
from symphony_dask.engine.native import memory
from symphony_dask.engine.native.arrays import Int64s
from symphony_dask.engine.native.heap import ITEM, KEY, ROOT
from symphony_dask.engine.policy import burstiness
from symphony_dask.engine.policy.packing import MOST_HELD
from symphony_dask.engine.policy.window import POLICIES
from symphony_dask.engine.queue_limits import MOST_PRIORITY
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.engine.state import (
    ABSENT,
    BUSY,
    CANCELLED,
    DEPTH,
    DRAINING,
    FREE,
    FULL,
    IN_FLIGHT,
    LEVELS,
    OPEN,
    PENDING,
    QUEUED,
    READY,
    REMOVED,
    RULES,
    UNUSED,
    Profiles,
    State,
    pairs,
)

#: The latest time of a call, and the latest and (negative) earliest of all times that follow from it, ns.
LATEST_CALL, LATEST = 1 << 61, 3 << 61

#: The longest SLO, l(b), latency or slack of an engine, ns.
LONGEST = LONGEST_NS

#: How many models, GPUs and GPU classes an engine takes, how large a batch, and bytes for all l(b).
MOST_MODELS, MOST_GPUS, MOST_CLASSES, MOST_BATCH, MOST_TABLE_BYTES = 1 << 16, 1 << 16, 1 << 10, 1 << 12, 1 << 31

#: The largest number of those that have 32 bits, and the largest share of an SLO that slack may be.
MOST_INT, MOST_SHARE = (1 << 31) - 1, 16.0

#: Beyond any ratio, rate or share, and above 0.
_HUGE, _TINY = 1e18, 1e-18


def within(what: str, value: npt.ArrayLike, low: float, high: float) -> None:
    """Raise ``ValueError`` unless ``value``, a number or an array, is from ``low`` to ``high`` all over."""
    found = np.asarray(value)
    bad = ~((found >= low) & (found <= high))  # which nan is, too
    if bad.any():
        raise ValueError(f"{what} is {found[bad].flat[0]}: it must be from {low} to {high}")


def check(s: State, p: Profiles) -> None:
    """Raise ``ValueError``, naming the first fault, unless no index of a state leads out of its arrays."""
    for name, array in (*s._asdict().items(), *p._asdict().items()):
        _require(not memory.is_damaged(array), f"memory beside {name!r} was written to")
    _check_scalars(s)
    _check_records(s, p)
    in_flight = _check_gpus(s)
    _check_models(s)
    queued = [slot for m in range(len(s.mod)) for slot in _check_queue(s, m)]
    free = s.slots[: int(s.g["n_slots"][0])].tolist()
    _require((np.asarray(s.req["state"])[free] == FREE).all(), "a free slot holds a request")
    _require(len(free) + len(queued) + len(in_flight) == len(s.req), "a request is lost")
    _require(len({*free, *queued, *in_flight}) == len(s.req), "a slot is in two places")
    models, gpus = s.mod["state"], s.gpu["state"]
    urgent = s.mod["urgent"] == 1
    for name, heap, items, inside in (
        ("pending", s.pending, s.mod, models == PENDING),
        ("ready", s.ready, s.mod, (models == READY) & ~urgent),
        ("urgent", s.urgent, s.mod, (models == READY) & urgent),
        ("busy", s.busy, s.gpu, gpus == BUSY),
        ("open", s.open, s.gpu, gpus == OPEN),
    ):
        _check_heap(name, heap, np.asarray(items["key"]), np.asarray(inside))


def _require(holds: object, text: str) -> None:
    if not holds:
        raise ValueError(text)


def _check_scalars(s: State) -> None:
    requests, models, gpus = len(s.req), len(s.mod), len(s.gpu)
    most: float
    for name, most in {
        "n_slots": requests, "n_dirty": models, "n_batches": gpus * DEPTH, "n_members": requests, "n_drops": requests,
        "live_gpus": gpus, "n_slow": gpus, "policy": max(POLICIES.values()), "exact": 1, "fleet_changed": 1,
        "opened": 1, "crowded": 1, "evicted_model": models - 1, "n_ineligible": models * gpus, "observed": 1,
        "waiting": 1.0, "slack_share": MOST_SHARE, "fraction": 1.0, "seq": LATEST, "next_batch": LATEST,
        "rules": RULES, "adaptive": 1, "packed": MOST_INT, "virtual_work": _HUGE, "needed": MOST_GPUS, "lost": 1,
        "tick_seq": LATEST, "arrival_rate": _HUGE, "bursts": burstiness.MOST,
    }.items():  # fmt: skip
        within(name, s.g[name], 0, most)
    within("evicted", s.g["evicted"], -1, requests - 1)
    for name in ("control", "slack"):
        within(name, s.g[name], -LONGEST, LONGEST)
    for name in ("early_at", "probe_at", "ticked_at", "tick_batch", "lead"):
        within(name, s.g[name], -LATEST, LATEST)


def _check_records(s: State, p: Profiles) -> None:
    """What does not depend on where a record stands."""
    requests, models, gpus = len(s.req), len(s.mod), len(s.gpu)
    _, classes, entries = s.lat.shape
    low: float
    high: float
    for name, low, high in (
        ("model", 0, models - 1), ("prev", -1, requests - 1), ("state", FREE, CANCELLED), ("levels", 0, LEVELS),
        ("priority", 0, MOST_PRIORITY), ("deadline", -LATEST, LATEST),
    ):  # fmt: skip
        within(f"{name} of a request", s.req[name], low, high)
    for name, links in (("nxt", s.nxt), ("head", s.head), ("tail", s.tail)):
        within(name, links, -1, requests - 1)
    within("slots", s.slots, 0, requests - 1)
    for name, low, high in (
        ("state", UNUSED, REMOVED), ("n", 0, requests), ("skipped", 0, requests), ("first", -1, requests - 1),
        ("first_raised", -1, requests - 1), ("raised", 0, requests), ("target", 0, entries - 2),
        ("virtual_n", 0, entries - 2), ("own_policy", 0, 1 + max(POLICIES.values())), ("prefers_gpus", 0, 1),
        ("delay", 0, LONGEST + 1), ("large_at", 0, MOST_HELD),
        ("max_batch", 0, entries - 2), ("gpu_class", 0, classes - 1), ("in_flight", 0, gpus * DEPTH), ("dirty", 0, 1),
        ("under", 0, 1), ("urgent", 0, 1), ("slo", 0, LONGEST), ("limit", 0, MOST_INT), ("rate_n", 0, MOST_INT),
        ("excess", -1, _HUGE), ("rate", 0, _HUGE), ("used", -_HUGE, _HUGE), ("served", 0, _HUGE), ("dropped", 0, _HUGE),
        *((name, -LATEST, LATEST) for name in ("key", "open", "close", "ready_since", "rate_since", "first_at")),
        ("virtual_first", -LATEST, LATEST), ("last_at", -LATEST, LATEST), ("try_at", -LATEST, LATEST),
    ):  # fmt: skip
        within(f"{name} of a model", s.mod[name], low, high)
    for name, low, high in (
        ("gpu_class", 0, classes - 1), ("state", ABSENT, DRAINING), ("n_flight", 0, DEPTH), ("draining", 0, 1),
        ("slow", 0, 1), ("slowdown", _TINY, _HUGE), ("heard", 0, MOST_INT),
        ("control", -LONGEST, LONGEST), *((name, -LATEST, LATEST) for name in ("key", "free_at", "rank")),
    ):  # fmt: skip
        within(f"{name} of a GPU", s.gpu[name], low, high)
    for name in ("start", "end"):
        within(f"{name} of a batch", s.flight[name], -LATEST, LATEST)
    within("rule of a batch", s.flight["rule"], 0, len(START_RULES) - 1)
    within("present", s.present, 0, gpus)
    within("l(b)", s.lat, -1, LATEST)
    within("given l(b)", p.given, -1, LONGEST)
    for name in ("drift", "acting"):
        within(name, getattr(p, name), _TINY, _HUGE)
    within("what was observed of a model on a GPU", pairs(s), 0, MOST_INT)
    within("heard_at", p.heard_at, -LATEST, LATEST)
    for name, counts in (("heard_on", p.heard_on), ("unread", p.unread)):
        within(name, counts, 0, MOST_INT)


def _check_gpus(s: State) -> list[int]:
    """What is in flight."""
    states, n_flight = np.asarray(s.gpu["state"]), np.asarray(s.gpu["n_flight"])
    _require((n_flight[states == FULL] == DEPTH).all(), "a GPU is full and has room")
    _require((n_flight[states == OPEN] < DEPTH).all(), "a GPU is open and full")
    _require((n_flight[states == ABSENT] == 0).all(), "a GPU that is not there has batches")
    requests: list[int] = []
    flights = np.zeros(len(s.mod), np.int64)
    for g in np.flatnonzero(n_flight).tolist():
        rows: list[int] = []
        for flight in s.flight[g * DEPTH :][: int(n_flight[g])]:
            m, n, row = (int(flight[name]) for name in ("model", "n", "row"))
            within("model of a batch", m, 0, len(s.mod) - 1)
            within("row of a batch", row, g * DEPTH, g * DEPTH + DEPTH - 1)
            within("size of a batch", n, 1, min(s.fly.shape[1], s.lat.shape[2] - 2))
            slots = s.fly[row, :n]
            within("request of a batch", slots, 0, len(s.req) - 1)
            _require((s.req["model"][slots] == m).all(), f"a batch of model {m} has requests of another")
            _require(np.isin(s.req["state"][slots], (IN_FLIGHT, CANCELLED)).all(), "a batch has requests that wait")
            requests += slots.tolist()
            rows.append(row)
            flights[m] += 1
        _require(len(rows) == len(set(rows)), f"batches of GPU {g} share a row")
    wrong = np.flatnonzero(flights != s.mod["in_flight"]).tolist()
    _require(not wrong, f"models {wrong} miscount their batches")
    return requests


def _check_models(s: State) -> None:
    states, n = np.asarray(s.mod["state"]), np.asarray(s.mod["n"])
    gone = (states == UNUSED) | (states == REMOVED)
    _require((n[gone] == 0).all(), "a model that is gone has requests")
    _require((s.mod["in_flight"][states == UNUSED] == 0).all(), "a model that is gone has batches")
    served = s.mod[~gone]
    within("max_batch of a model", served["max_batch"], 1, s.lat.shape[2] - 2)
    if not s.g["fleet_changed"][0]:
        within("target of a model", served["target"], 1, served["max_batch"])
    dirty = s.dirty[: int(s.g["n_dirty"][0])]
    within("model to be looked at", dirty, 0, len(s.mod) - 1)
    same = np.array_equal(np.sort(dirty), np.flatnonzero(s.mod["dirty"]))
    _require(same, "the models to be looked at are not those marked so")


def _check_queue(s: State, m: int) -> list[int]:
    """The requests of a model that wait, in order."""
    mod = s.mod[m]
    slots = _walk(s, m, 0)
    _require(len(slots) == mod["n"], f"model {m} counts {mod['n']} requests and queues {len(slots)}")
    if not slots:
        empty = (s.head[m] < 0).all() and (s.tail[m] < 0).all()
        _require(empty and mod["first"] < 0 and mod["first_raised"] < 0, f"the queue of model {m} is empty and is not")
        _require(mod["raised"] == 0 and mod["skipped"] == 0, f"the empty queue of model {m} is miscounted")
        return slots
    queued = s.req[slots]
    levels, priorities, deadlines = (np.asarray(queued[name]) for name in ("levels", "priority", "deadline"))
    _require((queued["state"] == QUEUED).all(), f"the queue of model {m} has requests that do not wait")
    _require((queued["model"] == m).all(), f"the queue of model {m} has requests of another")
    keys = list(zip(deadlines.tolist(), queued["seq"].tolist(), strict=True))
    _require(keys == sorted(keys), f"the queue of model {m} is out of order")
    _require(queued["prev"].tolist() == [-1, *slots[:-1]], f"back links of model {m} are broken")
    _require((levels > 0).all(), f"level 0 of model {m} is broken")
    for level in range(1, LEVELS):
        expected = np.array(slots)[levels > level].tolist()
        _require(_walk(s, m, level) == expected, f"level {level} of model {m} is broken")
    _require(mod["skipped"] < len(slots), f"model {m} skips all its requests")
    _require(mod["first"] == slots[mod["skipped"]], f"first of model {m} is wrong")
    _require(mod["first_at"] == deadlines[mod["skipped"]], f"first_at of model {m} is stale")
    _require(mod["last_at"] == deadlines[-1], f"last_at of model {m} is stale")
    raised = [slot for slot, priority in zip(slots, priorities.tolist(), strict=True) if priority > 0]
    _require(mod["raised"] == len(raised), f"model {m} counts {mod['raised']} raised requests, queues {len(raised)}")
    _require(mod["first_raised"] == (raised[0] if raised else -1), f"first raised request of model {m} is wrong")
    return slots


def _walk(s: State, m: int, level: int) -> list[int]:
    slots: list[int] = []
    at = int(s.head[m, level])
    while at >= 0:
        slots.append(at)
        _require(len(slots) <= len(s.req), f"level {level} of model {m} never ends")
        at = int(s.nxt[at, level])
    _require(s.tail[m, level] == (slots[-1] if slots else -1), f"tail {level} of model {m} is wrong")
    return slots


def _check_heap(name: str, heap: Int64s, own_keys: npt.NDArray[Any], inside: npt.NDArray[Any]) -> None:
    items = len(own_keys)
    _require(heap[0, KEY] == ROOT + items, f"heap {name!r} has its places elsewhere")
    n = int(heap[0, ITEM])
    within(f"size of heap {name!r}", n, 0, items)
    keys, held = heap[ROOT : ROOT + n, KEY], heap[ROOT : ROOT + n, ITEM]
    within(f"item of heap {name!r}", held, 0, items - 1)
    _require(np.array_equal(np.sort(held), np.flatnonzero(inside)), f"heap {name!r} holds others than it should")
    _require((own_keys[held] == keys).all(), f"a key of heap {name!r} is not its item's")
    places = np.zeros(items, np.int64)
    places[held] = np.arange(ROOT, ROOT + n)
    _require((heap[ROOT + items :].reshape(-1)[:items] == places).all(), f"a place of heap {name!r} is stale")
    below = np.arange(ROOT + 1, ROOT + n)
    above = heap[below // 4 + 2]
    mine = heap[below]
    ordered = (above[:, KEY] < mine[:, KEY]) | ((above[:, KEY] == mine[:, KEY]) & (above[:, ITEM] < mine[:, ITEM]))
    _require(ordered.all(), f"heap {name!r} is out of order")
