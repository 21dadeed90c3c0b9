"""Tells what happened to one request of a run, in plain sentences, from the run's tables alone."""

from __future__ import annotations

from typing import Any

import polars as pl

from symphony_dask.engine.start_rules import TEXTS
from symphony_dask.errors import BadInput
from symphony_dask.trace import Run
from symphony_dask.units import NS_PER_MS, NS_PER_S, format_duration
from workloads.analysis.causes import CAUSES, LIVE_GAP_NS, causes, fastest_ns, label
from workloads.analysis.gpu_presence import presence_intervals

#: Batches in ``busy``, at most; GPUs that have a sentence of their own, and the batches in it.
MOST_BATCHES, MOST_GPUS, MOST_OF_GPU = 200, 8, 6


def explain(run: Run, request: int) -> dict[str, Any]:
    """All that the tables tell of request ``request``: every time in ms since its arrival, and ``sentences``.

    Keys: request, label, policy, model, client, outcome, cause (late and dropped only), arrival_s (of the run),
    deadline_ms, reply_ms, batch (None where it was in none: batch, gpu, size, outcome, rule, window_open_ms,
    window_close_ms, dispatch_ms, planned_start_ms, planned_end_ms, start_ms, end_ms; rule, which let it start, is None
    in runs of before rules were recorded), busy (batches that were at GPUs between its
    arrival and its end: gpu, batch, model, size, dispatch_ms, start_ms, end_ms; ``MOST_BATCHES`` at most, busy_left_out
    says how many more), gpus (which were there), sentences.

    Raises ``BadInput`` when the run has no such request, or it was not served.
    """
    rows = run.requests.filter(pl.col("id") == request).collect(engine="streaming")
    if not rows.height:
        known = run.requests.select(pl.col("id").min().alias("low"), pl.col("id").max().alias("high")).collect()
        low, high = known.row(0)
        text = "it has no requests yet" if low is None else f"its ids run from {low} to {high}"
        raise BadInput(f"run {str(run.folder)!r} has no request {request}: {text}")
    row = rows.row(0, named=True)
    if row["outcome"] is None:
        raise BadInput(f"request {request} of {str(run.folder)!r} was not served: give a recorded or simulated run")
    arrival: int = row["arrival_ns"]

    def ms(time_ns: int | None) -> float | None:
        return None if time_ns is None else (time_ns - arrival) / NS_PER_MS

    found: dict[str, Any] = {
        "request": request,
        "label": label(run),
        "policy": run.info.get("policy"),
        "model": row["model"],
        "client": row["client"],
        "outcome": row["outcome"],
        "cause": None,
        "arrival_s": arrival / NS_PER_S,
        "deadline_ms": ms(row["deadline_ns"]),
        "reply_ms": ms(row["reply_ns"]),
        "batch": None,
    }
    if row["outcome"] in CAUSES:
        found["cause"] = causes(run, row["outcome"], request)["cause"][0]
    if row["batch"] is not None:
        of_batch = run.batches.filter(pl.col("batch") == row["batch"]).collect(engine="streaming")
        if of_batch.height:
            b = of_batch.row(0, named=True)
            times = ("window_open", "window_close", "dispatch", "planned_start", "planned_end", "start", "end")
            found["batch"] = {
                **{name: b[name] for name in ("batch", "gpu", "size", "outcome", "rule")},
                **{f"{name}_ms": ms(b[f"{name}_ns"]) for name in times},
            }
    until = max(t for t in (row["reply_ns"], row["end_ns"], arrival) if t is not None)
    _add_gpus(run, found, arrival, until)
    found["sentences"] = _sentences(run, found)
    found["busy_left_out"] = max(len(found["busy"]) - MOST_BATCHES, 0)
    found["busy"] = found["busy"][:MOST_BATCHES]
    return found


def _add_gpus(run: Run, found: dict[str, Any], begin: int, until: int) -> None:
    """GPUs that were ready at some time from ``begin`` to ``until``, and what they had to do then."""
    there = presence_intervals(run).filter(
        (pl.col("ready_ns") <= until) & (pl.col("leave_ns").fill_null(until) >= begin)
    )
    there = there.unique("gpu", keep="last")
    end = pl.coalesce("end_ns", "planned_end_ns")
    busy = (
        run.batches.filter((pl.col("dispatch_ns") <= until) & (end > begin))
        .select("gpu", "batch", "model", "size", "dispatch_ns", "start_ns", end_ns=end)
        .sort("dispatch_ns", "batch")
        .collect(engine="streaming")
    )
    gpus = sorted(set(there["gpu"].to_list()) | set(busy["gpu"].to_list()))
    classes = dict(there.select("gpu", "gpu_class").iter_rows())
    found["gpus"] = [{"gpu": g, "gpu_class": classes.get(g)} for g in gpus]
    found["busy"] = [
        {
            **{name: b[name] for name in ("gpu", "batch", "model", "size")},
            **{
                f"{name}_ms": None if b[f"{name}_ns"] is None else (b[f"{name}_ns"] - begin) / NS_PER_MS
                for name in ("dispatch", "start", "end")
            },
        }
        for b in busy.to_dicts()
    ]


def at(ms: float) -> str:
    """A time since the arrival, for a person: "+18.00 ms"."""
    return f"{ms:+.2f} ms"


def _sentences(run: Run, f: dict[str, Any]) -> list[str]:
    due = f["deadline_ms"]
    said = [
        f"Request {f['request']} of {f['model']} arrived {f['arrival_s']:.6f} s into the {f['label']} run and was due "
        f"{due:.2f} ms later. Times below count from its arrival."
    ]
    batch = f["batch"]
    said += _of_batch(run, f, batch) if batch else _without_batch(run, f)
    said.append(_ending(f))
    said += _others(f)
    return said


def _of_batch(run: Run, f: dict[str, Any], b: dict[str, Any]) -> list[str]:
    said = []
    size, left = b["size"], b["dispatch_ms"]
    table = fastest_ns(run, f["model"])
    opened, closed = b["window_open_ms"], b["window_close_ms"]
    if opened is not None and closed is not None:
        said.append(f"The window of its batch opened at {at(opened)} and closed at {at(closed)}.")
    company = "alone" if size == 1 else f"with {size - 1} other request{'s' if size > 2 else ''} of {f['model']}"
    if left is not None:
        said.append(f"It was dispatched at {at(left)} to GPU {b['gpu']}, {company}, as batch {b['batch']}.")
    if b["rule"] is not None:
        said.append(
            f"What let it start is the rule {b['rule']}: {TEXTS.get(b['rule'], 'this version does not know it')}."
        )
    if opened is not None and left is not None:
        said.append(_why_then(f, opened, closed, left))
    if table is not None and size + 1 < len(table):
        took, more = int(table[size]), int(table[size + 1])
        said.append(
            f"By its profile (the run's fastest class) a batch of {size} takes {format_duration(took)}, and one of "
            f"{size + 1} {format_duration(more)}: one more request would have cost {format_duration(more - took)}."
        )
    if b["start_ms"] is not None and b["end_ms"] is not None:
        text = f"The GPU ran it from {at(b['start_ms'])} to {at(b['end_ms'])}, {b['end_ms'] - b['start_ms']:.2f} ms"
        if b["planned_start_ms"] is not None and b["planned_end_ms"] is not None:
            planned = b["planned_end_ms"] - b["planned_start_ms"]
            late = b["start_ms"] - b["planned_start_ms"]
            text += f"; planned were {planned:.2f} ms from {at(b['planned_start_ms'])} on"
            text += (
                f", so it started {abs(late):.2f} ms {'late' if late > 0 else 'early'}" if abs(late) >= 0.005 else ""
            )
        said.append(text + ".")
    elif b["outcome"] == "lost":
        said.append(f"GPU {b['gpu']} left before it reported the end of that batch.")
    return said


def _why_then(f: dict[str, Any], opened: float, closed: float | None, left: float) -> str:
    gap = LIVE_GAP_NS / NS_PER_MS if f["label"] != "simulated" else 0.0
    begin = max(opened, 0.0)
    busy = _busy_throughout(f, begin, left, gap)
    after = left - begin
    if left < opened - 1e-6:
        said = f"That was {opened - left:.2f} ms before the opening"
        if f["batch"]["rule"] is None:
            said += f", for the policy {f['policy']} starts early"
        if left > gap and _busy_throughout(f, 0.0, left, gap):
            return f"{said}, as soon as a GPU was free: {_all_gpus(f)} busy from its arrival until then."
        return f"{said}: a GPU was free."
    if after <= gap + 1e-6:
        return "That was when its window opened, or when it arrived in an open one: a GPU was free."
    where = "after the window had closed" if closed is not None and left > closed + gap else "inside the window"
    if busy:
        return f"It left {after:.2f} ms after the opening, {where}, because {_all_gpus(f)} busy until then."
    return (
        f"It left {after:.2f} ms after the opening, {where}; a GPU was idle for a part of that, and was given to "
        "others first."
    )


def _all_gpus(f: dict[str, Any]) -> str:
    return "the only GPU was" if len(f["gpus"]) == 1 else f"all {len(f['gpus'])} GPUs were"


def _busy_throughout(f: dict[str, Any], begin: float, end: float, gap: float) -> bool:
    """Whether every GPU had something to do from ``begin`` to ``end`` ms, but for gaps of up to ``gap``."""
    own = f["batch"]["batch"] if f["batch"] else None
    reached = {gpu["gpu"]: begin for gpu in f["gpus"]}
    for b in f["busy"]:  # by dispatch
        if b["batch"] != own and b["dispatch_ms"] <= reached[b["gpu"]] + gap + 1e-6:
            reached[b["gpu"]] = max(reached[b["gpu"]], b["end_ms"])
    return bool(reached) and min(reached.values()) + gap + 1e-6 >= end


def _without_batch(run: Run, f: dict[str, Any]) -> list[str]:
    table = fastest_ns(run, f["model"])
    if table is None or f["outcome"] != "dropped":
        return []
    due, l1, l2 = f["deadline_ms"], int(table[1]), int(table[2])
    return [
        f"Alone it takes l(1) = {format_duration(l1)} on the run's fastest class, so it could start no later than "
        f"{at(due - l1 / NS_PER_MS)}; the window of it alone opened at {at(due - l2 / NS_PER_MS)}, "
        "and that of it with others before.",
    ]


def _ending(f: dict[str, Any]) -> str:
    outcome, reply, due = f["outcome"], f["reply_ms"], f["deadline_ms"]
    when = "" if reply is None else f" at {at(reply)}"
    why = "" if f["cause"] is None else f": {CAUSES[outcome][f['cause']]} ({f['cause']})"
    if outcome == "ok":
        return f"It was answered{when}, {due - (reply or 0):.2f} ms before its deadline."
    if outcome == "late":
        return f"It was answered{when}, {(reply or 0) - due:.2f} ms after its deadline{why}."
    if outcome == "dropped":
        return f"It was dropped{when}, because it could no longer be in time{why}."
    meaning = {
        "rejected": "the queue was full, or no worker served its model",
        "failed": "the model raised, or its worker was lost",
        "cancelled": "the client withdrew it, or its model was undeployed",
    }
    return f"It ended as {outcome}{when}: {meaning[outcome]}."


def _others(f: dict[str, Any]) -> list[str]:
    own = f["batch"]["gpu"] if f["batch"] else None
    by_gpu: dict[int, list[dict[str, Any]]] = {gpu["gpu"]: [] for gpu in f["gpus"]}
    for b in f["busy"]:
        by_gpu[b["gpu"]].append(b)
    # Its own GPU goes first.
    ordered = sorted(f["gpus"], key=lambda gpu: (gpu["gpu"] != own, gpu["gpu"]))
    said = []
    for gpu in ordered[:MOST_GPUS]:
        mine = by_gpu[gpu["gpu"]]
        name = f"GPU {gpu['gpu']}" + (f" ({gpu['gpu_class']})" if gpu["gpu_class"] else "")
        if not mine:
            said.append(f"{name} was idle all the while.")
            continue
        parts = []
        for b in mine[:MOST_OF_GPU]:
            begin = b["dispatch_ms"] if b["start_ms"] is None else b["start_ms"]
            parts.append(f"{b['size']} of {b['model']} from {at(begin)} to {at(b['end_ms'])} (batch {b['batch']})")
        more = f"; and {len(mine) - MOST_OF_GPU:,} more batches" if len(mine) > MOST_OF_GPU else ""
        said.append(f"{name} meanwhile ran {'; '.join(parts)}{more}.")
    if rest := ordered[MOST_GPUS:]:
        idle = sum(not by_gpu[gpu["gpu"]] for gpu in rest)
        said.append(f"Of the {len(rest):,} other GPUs {idle:,} were idle all the while, the others ran batches.")
    return said
