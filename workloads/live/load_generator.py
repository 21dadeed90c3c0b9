"""Offers requests at their times from processes of its own, whatever the answers: an open-loop load generator.

The caller's process, its garbage and its other work cannot delay a request, and neither can a slow answer: what the
generator was late by is reported (``Loaded.lateness_ms``) and counted against the server, since each deadline counts
from the time at which the request was due. ``lane_generator`` is what the processes run.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask.config
import numpy as np
import numpy.typing as npt
from distributed.comm.addressing import get_address_host

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, ConnectionLost
from symphony_dask.trace import Outcome
from symphony_dask.units import NS_PER_MS, NS_PER_S
from symphony_dask.wire import codec
from workloads.live.http_generator import HttpPlan
from workloads.live.lane_generator import NO_ANSWER, TOGETHER_NS, Plan

__all__ = ["NO_ANSWER", "TOGETHER_NS", "Loaded", "keep_http_under_way", "keep_under_way", "offer", "offer_http"]

#: From when all processes are ready to the first request, ns.
_LEAD_NS = 100 * NS_PER_MS

#: How long a process may take to start and connect, and to end, s.
_START_S, _STOP_S = 60.0, 60.0


@dataclass(frozen=True)
class Loaded:
    """What became of n requests. Columns of length n; times in ns from the common start.

    due: when they were to be submitted (in a closed loop: were). done: when the answer was here, -1 without one.
    outcome: of ``trace.Outcome``, ``NO_ANSWER`` where none came in time.
    """

    due: npt.NDArray[np.int64]
    submitted: npt.NDArray[np.int64]
    done: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.int8]
    slo: npt.NDArray[np.int64]

    @property
    def lateness_ms(self) -> npt.NDArray[np.float64]:
        """How much later than due each request left, ms."""
        return np.maximum(self.submitted - self.due, 0) / NS_PER_MS

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        return (self.outcome == Outcome.OK) | (self.outcome == Outcome.LATE)

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Answered within the SLO of its due time, by the generator's own clock."""
        return self.answered & (self.done - self.due <= self.slo)

    @property
    def latency_ms(self) -> npt.NDArray[np.float64]:
        """From due to answer, of those answered, ms."""
        return (self.done - self.due)[self.answered] / NS_PER_MS

    def to_dict(self) -> dict[str, Any]:
        """Counts and quantiles; every request is in one of the counts."""
        n = len(self.due)
        span_s = max(int(self.due[-1]), 1) / NS_PER_S if n else 0.0
        ok = int(self.ok.sum())
        counts = {
            o.name.lower(): int((self.outcome == o).sum()) for o in Outcome if o not in (Outcome.OK, Outcome.LATE)
        }
        counts["failed"] += int((self.outcome == NO_ANSWER).sum())
        p50, p99 = np.quantile(self.latency_ms, [0.5, 0.99]).tolist() if self.answered.any() else (None, None)
        late50, late99, late_max = np.quantile(self.lateness_ms, [0.5, 0.99, 1.0]).tolist() if n else (0.0, 0.0, 0.0)
        return {
            "requests": n,
            "ok": ok,
            "late": int(self.answered.sum()) - ok,
            **counts,
            "attainment": ok / n if n else None,
            "offered_hz": n / span_s if n else 0.0,
            "goodput_hz": ok / span_s if n else 0.0,
            "p50_ms": p50,
            "p99_ms": p99,
            "lateness_p50_ms": late50,
            "lateness_p99_ms": late99,
            "lateness_max_ms": late_max,
        }


def offer(
    serving: Serving,
    models: Sequence[Model],
    arrivals_ns: npt.NDArray[np.int64],
    choices: npt.NDArray[np.int32],
    *,
    samples: Sequence[Any] | None = None,
    processes: int = 1,
    drain_s: float = 30.0,
) -> Loaded:
    """Submit request i to ``models[choices[i]]`` at ``arrivals_ns[i]``, counted from the first; open loop.

    arrivals_ns: (n,) rising; choices: (n,). samples: the sample that each model is given, by default None.
    processes: how many share the load; one was late by 1 ms (p99) at 20,000 req/s, 2.6 at 50,000 (docs/results.md).
    drain_s: how long to wait for the last answers; requests without one by then count as failed.

    Raises ``BadInput`` if there is nothing to offer, ``ConnectionLost`` if the lane is lost meanwhile.
    """
    n = len(arrivals_ns)
    if n == 0 or processes < 1:
        raise BadInput(f"{n} requests from {processes} processes: there must be at least one of each")
    due = arrivals_ns - arrivals_ns[0]
    numbers = np.array([model.number for model in models], np.int32)
    payloads = _payloads(models, samples)
    parts = [slice(k, None, processes) for k in range(min(processes, n))]
    plans = [
        _plan(serving, due=due[part], models=numbers[choices[part]], payloads=payloads, drain_s=drain_s)
        for part in parts
    ]
    columns = {name: np.empty(n, np.int64) for name in ("submitted", "done")}
    outcome = np.empty(n, np.int8)
    for part, result in zip(parts, _run(plans), strict=True):
        if result["lost"] and len(result["done"]) < len(due[part]):
            raise ConnectionLost(f"{result['lost']} after {len(result['done'])} of {len(due[part])} requests")
        for name, values in columns.items():
            values[part] = result[name]
        outcome[part] = result["outcome"]
    slo = np.array([model.slo_ns for model in models], np.int64)[choices]
    return Loaded(due, columns["submitted"], columns["done"], outcome, slo)


def keep_under_way(
    serving: Serving,
    model: Model,
    under_way: int,
    seconds: float,
    *,
    sample: object = None,
    most: int = 20_000_000,
    drain_s: float = 30.0,
) -> Loaded:
    """A closed loop for ``seconds``: ``under_way`` requests at any time, each answer sets off the next.

    most: requests at which it ends even before.
    """
    payloads = _payloads([model], [sample])
    plan = _plan(
        serving,
        due=None,
        models=np.full(most, model.number, np.int32),
        payloads=payloads,
        drain_s=drain_s,
        under_way=under_way,
        span=round(seconds * NS_PER_S),
    )
    (result,) = _run([plan])
    if result["lost"]:
        raise ConnectionLost(result["lost"])
    submitted = result["submitted"]
    slo = np.full(len(submitted), model.slo_ns, np.int64)
    return Loaded(submitted, submitted, result["done"], result["outcome"], slo)


def offer_http(
    url: str,
    arrivals_ns: npt.NDArray[np.int64],
    slo_ns: int,
    *,
    body: bytes,
    content_type: str = "application/octet-stream",
    headers: Sequence[str] = (),
    connections: int = 512,
    drain_s: float = 10.0,
) -> Loaded:
    """POST ``body`` to ``url`` (http://host:port/path) at each of ``arrivals_ns``, (n,) rising; open loop, one process.

    headers: further lines of each request, as "Name: value".

    An answer of status 200 is an answer, anything else counts as failed. Raises ``BadInput`` if there is nothing to
    offer.
    """
    if len(arrivals_ns) == 0:
        raise BadInput("0 requests: there must be at least one")
    due = arrivals_ns - arrivals_ns[0]
    plan = _http_plan(url, due, body, content_type, headers, connections, drain_s)
    (result,) = _run([plan], "workloads.live.http_generator")
    slo = np.full(len(due), slo_ns, np.int64)
    return Loaded(due, result["submitted"], result["done"], result["outcome"], slo)


def keep_http_under_way(
    url: str,
    under_way: int,
    seconds: float,
    slo_ns: int,
    *,
    body: bytes,
    content_type: str = "application/octet-stream",
    headers: Sequence[str] = (),
    drain_s: float = 10.0,
) -> Loaded:
    """A closed loop over HTTP for ``seconds``: ``under_way`` connections, each sends its next request at an answer."""
    plan = _http_plan(url, None, body, content_type, headers, under_way, drain_s, seconds)
    (result,) = _run([plan], "workloads.live.http_generator")
    submitted = result["submitted"]
    slo = np.full(len(submitted), slo_ns, np.int64)
    return Loaded(submitted, submitted, result["done"], result["outcome"], slo)


def _http_plan(
    url: str,
    due: npt.NDArray[np.int64] | None,
    body: bytes,
    content_type: str,
    headers: Sequence[str],
    connections: int,
    drain_s: float,
    seconds: float = 0.0,
) -> HttpPlan:
    at = urlsplit(url)
    return HttpPlan(
        host=at.hostname or "127.0.0.1",
        port=at.port or 80,
        path=at.path or "/",
        body=body,
        content_type=content_type,
        due=due,
        connections=connections,
        drain=round(drain_s * NS_PER_S),
        headers=tuple(headers),
        seconds=seconds,
    )


def _payloads(models: Sequence[Model], samples: Sequence[Any] | None) -> dict[int, bytes]:
    given = samples if samples is not None else [None] * len(models)
    return {model.number: bytes(codec.encode(sample)) for model, sample in zip(models, given, strict=True)}


def _plan(
    serving: Serving,
    *,
    due: npt.NDArray[np.int64] | None,
    models: npt.NDArray[np.int32],
    payloads: dict[int, bytes],
    drain_s: float,
    under_way: int = 0,
    span: int | None = None,
) -> Plan:
    client = serving.client
    scheduler: Any = client.scheduler
    info = client.sync(scheduler.symphony_info)
    return Plan(
        host=get_address_host(scheduler.address),
        port=info["port"],
        token=info["token"],
        security=client.security,
        due=due,
        models=models,
        payloads=payloads,
        relay=str(dask.config.get("symphony.lane.relay")),
        under_way=under_way,
        span=int(due[-1]) if due is not None and span is None else span or 0,
        drain=round(drain_s * NS_PER_S),
    )


def _run(plans: Sequence[Plan | HttpPlan], module: str = "workloads.live.lane_generator") -> list[dict[str, Any]]:
    """Run each plan in a process of its own, all from one start; returns what each wrote."""
    with tempfile.TemporaryDirectory(prefix="symphony-load-") as folder:
        processes = []
        try:
            for k, plan in enumerate(plans):
                file = Path(folder) / f"plan-{k}"
                file.touch(mode=0o600)  # it holds the cluster's token
                file.write_bytes(pickle.dumps(plan))
                command = [sys.executable, "-m", module, str(file), str(Path(folder) / f"result-{k}")]
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        process_group=0,  # Ctrl-C is for this process, which ends it
                        env={**os.environ, "OMP_NUM_THREADS": "1"},
                    )
                )
            for process in processes:
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise ConnectionLost(f"a load generator ended with status {process.wait(_START_S)} before it began")
            start = time.monotonic_ns() + _LEAD_NS
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"%d\n" % start)
                process.stdin.flush()
            limit_s = max(plan.span + plan.drain for plan in plans) / NS_PER_S + _STOP_S
            for process in processes:
                if process.wait(limit_s) != 0:
                    raise ConnectionLost(
                        f"a load generator ended with status {process.returncode}; see its output above"
                    )
        finally:
            for process in processes:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()
        results = [(Path(folder) / f"result-{k}").read_bytes() for k in range(len(plans))]
        return [pickle.loads(result) for result in results]  # noqa: S301 - of processes that were started here
