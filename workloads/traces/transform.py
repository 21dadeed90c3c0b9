"""Makes traces from traces, scaled, cut or mixed, and synthetic ones. All in bounded memory, all as run folders."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from symphony_dask.errors import BadInput
from symphony_dask.trace import Names, TraceWriter, arrival_chunks
from symphony_dask.trace.ordered import Rows, in_order, taken
from symphony_dask.units import NS_PER_S
from workloads.traces.info import Facts
from workloads.traces.synthetic_arrivals import drawn_models, time_generator
from workloads.traces.zoo import POPULARITIES

Path = str | os.PathLike[str]
#: Is told how many requests were done.
OnProgress = Callable[[int], None] | None

#: How a trace gets another rate (``scale``).
METHODS = ("time", "thin")

_CHUNK_ROWS = 1_000_000


def scale(
    path: Path, target: Path, factor: float, *, method: str = "time", seed: int = 0, on_progress: OnProgress = None
) -> dict[str, Any]:
    """Write the trace at ``path`` into ``target`` with ``factor`` times its rate; gives ``Facts.to_dict``.

    method: "time" divides arrival times by the factor (to the ns), which keeps the squared coefficient of variation of
        the gaps, so how bursty the trace is. Deadlines keep their distance to the arrivals. "thin" keeps the span and
        leaves requests out at random (a factor of at most 1, drawn by the seed), which brings gaps nearer to a Poisson
        process: a squared CV of c becomes about factor * c + 1 - factor where gaps are independent.

    To superpose a trace with itself, which also brings it nearer to Poisson, see ``mix``. Raises ``BadInput`` if the
    trace, the factor or the method cannot be used, or no request is left.
    """
    if not 0 < factor < math.inf or (method == "thin" and factor > 1):
        raise BadInput(f"factor {factor}: it must be positive and finite, and at most 1 to thin")
    if method not in METHODS:
        raise BadInput(f"method {method!r} is unknown: use one of {', '.join(METHODS)}")
    names, rng = Names(), time_generator(seed)

    def scaled() -> Iterator[Rows]:
        for rows in arrival_chunks(path, names, on_progress=on_progress):
            if method == "thin":
                yield taken(rows, rng.random(len(rows["id"])) < factor)
            else:
                slo_ns = rows["deadline_ns"] - rows["arrival_ns"]
                arrivals = np.rint(rows["arrival_ns"] / factor).astype(np.int64)
                yield {**rows, "arrival_ns": arrivals, "deadline_ns": arrivals + slo_ns}

    return write_chunks(scaled(), names, target, {"source": os.fspath(path), "scaled": factor, "method": method})


def cut(
    path: Path,
    target: Path,
    *,
    start_ns: int = 0,
    end_ns: int | None = None,
    models: Sequence[str] = (),
    on_progress: OnProgress = None,
) -> dict[str, Any]:
    """Write the requests that arrive from ``start_ns`` on and before ``end_ns``, into ``target``.

    start_ns, end_ns: on the clock of the trace; start becomes time 0. models: only these, where given.

    Requests keep their ids. Gives ``Facts.to_dict``. Raises ``BadInput`` if the trace or the window cannot be used, or
    no request is left.
    """
    if start_ns < 0 or (end_ns is not None and end_ns <= start_ns):
        raise BadInput(f"the window from {start_ns} to {end_ns} ns is empty: give a start before its end")
    names = Names()

    def wanted() -> Iterator[Rows]:
        for rows in arrival_chunks(path, names, on_progress=on_progress):
            arrivals = rows["arrival_ns"]
            end = len(arrivals) if end_ns is None else int(np.searchsorted(arrivals, end_ns))
            rows = taken(rows, slice(int(np.searchsorted(arrivals, start_ns)), end))
            if models:
                codes = [code for code, name in enumerate(names.names) if name in models]
                rows = taken(rows, np.isin(rows["model"], codes))
            yield {
                **rows,
                "arrival_ns": rows["arrival_ns"] - start_ns,
                "deadline_ns": rows["deadline_ns"] - start_ns,
            }
            if end < len(arrivals):
                return

    described = {"source": os.fspath(path), "start_ns": start_ns, "end_ns": end_ns, "only_models": list(models)}
    return write_chunks(wanted(), names, target, described)


def mix(
    paths: Sequence[Path], target: Path, *, separate: bool = False, on_progress: OnProgress = None
) -> dict[str, Any]:
    """Write the requests of all traces at ``paths``, on one clock, into ``target``; gives ``Facts.to_dict``.

    separate: models are named "1/NAME", "2/NAME" by their trace; else models of one name are one model.

    Requests are numbered anew; at one instant, those of the trace that is named first come first. Raises ``BadInput``
    if a trace cannot be used, or there are no requests.
    """
    names = Names()

    def all_rows() -> Iterator[Rows]:
        done = 0
        for number, path in enumerate(paths, 1):
            own = Names() if separate else names
            for rows in arrival_chunks(path, own, ["model", "arrival_ns", "deadline_ns", "bytes"]):
                if separate:
                    codes = np.array([names.code(f"{number}/{name}") for name in own.names], np.int32)
                    rows["model"] = codes[rows["model"]]
                n = len(rows["arrival_ns"])
                yield {**rows, "id": np.arange(done, done + n)}
                done += n
                if on_progress is not None:
                    on_progress(done)

    numbered = ({name: values for name, values in rows.items() if name != "id"} for rows in in_order(all_rows()))
    return write_chunks(numbered, names, target, {"sources": [os.fspath(path) for path in paths], "separate": separate})


def synth(
    target: Path,
    *,
    requests: int,
    rate_hz: float,
    shape: float = 1.0,
    models: int = 1,
    popularity: str = "equal",
    slo_ns: int | None = None,
    seed: int = 0,
    on_progress: OnProgress = None,
) -> dict[str, Any]:
    """Write so many requests with gamma distributed gaps into ``target``; gives ``Facts.to_dict``.

    rate_hz: of the mean gap, rounded to ns; shape: of the gamma distribution: the gaps' squared coefficient of
        variation is 1/shape, so 1 is a Poisson process and less is burstier.
    models: how many, named model-0 and up; each request's is drawn by ``popularity`` (of ``zoo.POPULARITIES``), so the
        parts are nearer to Poisson than the whole; ``mix`` traces of one model each to keep each model bursty.
    slo_ns: from arrival to deadline; none is known by default.

    The same arguments give the same bytes. Raises ``BadInput`` if they cannot be used.
    """
    if requests < 1 or not 0 < rate_hz < math.inf or not 0 < shape < math.inf or (slo_ns is not None and slo_ns < 1):
        raise BadInput(
            f"requests={requests}, rate_hz={rate_hz}, shape={shape}, slo_ns={slo_ns}: each must be positive and finite"
        )
    if requests / rate_hz > 2**62 / NS_PER_S:
        raise BadInput(f"{requests} requests at {rate_hz} req/s last beyond a century: give a higher rate")
    if popularity not in POPULARITIES:
        raise BadInput(f"popularity {popularity!r} is unknown: use one of {', '.join(POPULARITIES)}")
    draw = drawn_models(POPULARITIES[popularity](models), seed)
    rng = time_generator(seed)

    def drawn() -> Iterator[Rows]:
        last = 0
        for at in range(0, requests, _CHUNK_ROWS):
            n = min(_CHUNK_ROWS, requests - at)
            gaps = np.rint(rng.gamma(shape, NS_PER_S / (rate_hz * shape), n)).astype(np.int64)
            arrivals = last + np.cumsum(gaps)
            last = int(arrivals[-1])
            deadlines = arrivals if slo_ns is None else arrivals + slo_ns
            yield {"arrival_ns": arrivals, "model": draw(n), "deadline_ns": deadlines}
            if on_progress is not None:
                on_progress(at + n)

    described = {
        "source": "synthetic",
        "rate_hz": rate_hz,
        "shape": shape,
        "popularity": popularity,
        "slo_ns": slo_ns,
        "seed": seed,
    }
    return write_chunks(drawn(), Names(f"model-{m}" for m in range(models)), target, described)


def write_chunks(chunks: Iterator[Rows], names: Names, target: Path, described: dict[str, Any]) -> dict[str, Any]:
    facts = Facts()
    with TraceWriter(target, described) as writer:
        for rows in chunks:
            facts.add(rows["arrival_ns"], rows["model"])
            writer.write(rows, names.names)
        if not facts.requests:
            raise BadInput(f"no request is left for {os.fspath(target)!r}: give a wider window, or another trace")
    return facts.to_dict()
