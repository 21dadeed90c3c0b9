"""Runs of faults on a cluster that is kept between them, and what a user saw in each."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distributed import Client

from symphony_dask.client.serving import Serving
from symphony_dask.clock import now_ns
from symphony_dask.errors import SymphonyError
from symphony_dask.units import NS_PER_MS, NS_PER_S
from tests.helpers.cluster import wait_until
from workloads.faults import kinds
from workloads.faults.cluster import FaultyCluster
from workloads.faults.kinds import KINDS, Fault, Scene
from workloads.faults.models import Scripted, set_mode
from workloads.faults.plan import Plan
from workloads.faults.traffic import Load, Sent, Traffic, wait_for_ends

SLO_NS = 500 * NS_PER_MS

LOADS = (Load("steady", 60.0, SLO_NS), Load("odd", 30.0, SLO_NS), Load("wide", 15.0, SLO_NS, numbers=2500))

#: Before the first fault, s.
LEAD_S = 0.3

#: Goodput is looked at over so long, and has to be back so soon after the last fault was cleared, s: the latter where a
#: process has to start.
WINDOW_S, BACK_S, BACK_WITH_START_S = 0.5, 5.0, 30.0

#: What share of requests is to be answered in time again.
BACK = 0.95


@dataclass
class Asked:
    """A request over HTTP: its status, or what the connection raised."""

    sent_ns: int
    ended_ns: int
    status: str


class Web:
    """POSTs one sample after the other to the gateway, from a thread of its own."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self.asked: list[Asked] = []
        self._going = True
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._going = False
        self._thread.join(30)

    def _ask(self) -> None:
        tensor = {"name": "input", "shape": [1], "datatype": "FP64", "data": [-2.0]}
        body = json.dumps({"inputs": [tensor]})
        while self._going:
            sent = now_ns()
            connection = http.client.HTTPConnection(self._host, timeout=10)
            try:
                connection.request("POST", "/v2/models/steady/infer", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                status = str(response.status)
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
            finally:
                connection.close()
            self.asked.append(Asked(sent, now_ns(), status))
            time.sleep(0.05)


class Lags:
    """When, and for how long, this process got no CPU: what it saw late, it may have been told in time."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        last = now_ns()
        while True:
            time.sleep(0.01)
            now = now_ns()
            if now - last > 40 * NS_PER_MS:
                self._seen.append((last, now))
            last = now

    def between(self, begin_ns: int, end_ns: int) -> int:
        """How long of this stretch, ns."""
        parts = [min(end, end_ns) - max(begin, begin_ns) for begin, end in self._seen]
        return sum(part for part in parts if part > 0)


@dataclass
class Run:
    """What happened in one run. folder: the recording; counts: outcomes by model, as the scheduler counted them.

    clients: the numbers on the lane that this process's client had. lost: processes of workers that were lost.
    back_s: after the last fault was cleared until goodput was back, None: it was not.
    """

    plan: Plan
    folder: Path
    first_sample: int
    sent: list[Sent] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    hanging: list[Sent] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    clients: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    back_s: float | None = None
    shares: dict[str, float] = field(default_factory=dict)
    another_scheduler: bool = False
    still_busy: str = ""
    state: str = ""
    invalid: str = ""
    seconds: float = 0.0

    @property
    def kinds(self) -> list[str]:
        return [fault.kind for fault in self.plan.faults]

    @property
    def back_within_s(self) -> float:
        return BACK_WITH_START_S if any(KINDS[kind].needs_process for kind in self.kinds) else BACK_S

    def errors(self, model: str) -> Counter[str]:
        """How a model's requests ended, by the name of the error, or "ok" or "late"."""
        return Counter(sent.error or sent.outcome for sent in self.sent if sent.load.model == model)


class Bed:
    """Two workers, a gateway, another client, and three models, one of which misbehaves when it is told to.

    Recordings are written into a file system of their own where this process may mount one (root).
    """

    def __init__(self, workers: int = 2, *, gateway: bool = True) -> None:
        self._n_workers, self._gateway = workers, gateway
        self._directory = tempfile.TemporaryDirectory(prefix="symphony-bed-", ignore_cleanup_errors=True)
        self.folder = Path(self._directory.name)
        self.models = self.folder / "models"
        self.models.mkdir()
        self.runs = self.folder / "runs"
        self.runs.mkdir()
        self._mounted = False
        self._next_sample = 1
        self._n_runs = 0
        self._clients: list[Client] = []
        self.lags = Lags()

    def __enter__(self) -> Bed:
        try:
            self._mount()
            settings = {"DASK_SYMPHONY__MAX_REQUESTS": "4096"}
            self.cluster = FaultyCluster(self._n_workers, settings=settings).__enter__()
            self._connect()
            self.serving.wait_ready(gpus=self._n_workers, timeout="120s")
            for load in LOADS:
                model = Scripted(str(self.models), load.model, 0.5, 8.0)
                self.control.deploy(load.model, model, slo=f"{load.slo_ns}ns", profile="0.5,8.0", max_batch=16)
            if self._gateway:
                self.cluster.start_gateway()
            self.cluster.start_victim("steady")
            self.scene = Scene(
                self.cluster, self.control, str(self.models), "odd", self.runs if self._mounted else None, self._again
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self._clients:
            client.close(timeout=2)
        if hasattr(self, "cluster"):
            self.cluster.__exit__()
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.runs)], check=False)
        self._directory.cleanup()

    def run(self, plan: Plan) -> Run:
        """Carry out a plan under traffic; what came of it is judged by ``promises.broken``."""
        self.heal()
        began = time.monotonic()
        self._n_runs += 1
        run = Run(plan, self.runs / f"run-{self._n_runs}", self._next_sample)
        self.scene.lost = run.lost
        victim = self.cluster.victim
        if victim is not None and not victim.stopped:
            victim.stop()
            self._wait_for_quiet()
        self.control.set_policy(plan.policy)
        before = self._counts()
        self.control.record(str(run.folder))
        if victim is not None:
            victim.go_on()
        self._traffic = traffic = Traffic(self.serving, LOADS, self._next_sample, plan.seed)
        web = Web(self.cluster.url) if self._gateway else None
        self._another = False
        traffic.start()
        time.sleep(LEAD_S)
        run.clients.add(self._lane_number())
        self._carry_out(plan)
        cleared = now_ns()
        self._wait_for_goodput(run, traffic, cleared)
        traffic.stop()
        if web is not None:
            web.stop()
            run.asked = web.asked
        run.sent = traffic.sent
        self._next_sample = max((sent.sample for sent in run.sent), default=self._next_sample) + 1
        run.hanging = wait_for_ends(run.sent, 4.0)
        if self.cluster.victim is not None and self.cluster.victim.alive:
            self.cluster.victim.stop()
        run.another_scheduler = self._another
        run.still_busy = self._wait_for_quiet()
        if not run.another_scheduler:
            self.control.stop_recording()
            after = self._counts()
            run.counts = {name: after[name] - before.get(name, Counter()) for name in after}
            run.invalid = self._validate()
        run.clients |= {self._lane_number()}
        run.seconds = time.monotonic() - began
        return run

    def heal(self) -> None:
        """Wait until all is as at the begin: every process there, every model in every slot."""
        cluster = self.cluster
        for load in LOADS:
            set_mode(str(self.models), load.model, "")
        for part in [part for part in cluster.workers if not part.alive]:
            cluster.workers.remove(part)
        while len(cluster.workers) > self._n_workers:
            cluster.workers.pop().end()
        while len(cluster.workers) < self._n_workers:
            cluster.add_worker()
        if cluster.victim is None or not cluster.victim.alive:
            cluster.start_victim("steady")
        if self._gateway and (cluster.gateway is None or not cluster.gateway.alive):
            cluster.start_gateway()
        try:
            wait_until(self._whole, "the cluster to be whole again", 90)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self._state()}; gateway serves: {self._gateway_serves()}") from None
        for kind in ("worker", "client", "scheduler"):
            cluster.prepare(kind)

    def renew_workers(self) -> None:
        """Other workers, as threads of these hang for ever."""
        workers, self.cluster.workers = self.cluster.workers, []
        for part in workers:
            part.end()

    def remove(self, run: Run) -> None:
        """Delete a recording."""
        shutil.rmtree(run.folder, ignore_errors=True)

    def _whole(self) -> bool:
        try:
            status = self.control.status()
            self.serving.status()  # which connects anew, if need be
        except (SymphonyError, OSError):
            return False
        workers = [worker for worker in status["workers"].values() if worker.get("serving")]
        there = all(status["models"].get(load.model, {}).get("slots") == self._n_workers for load in LOADS)
        ready = len(workers) == self._n_workers and not any(worker["draining"] for worker in workers)
        return there and ready and (not self._gateway or self._gateway_serves())

    def _gateway_serves(self) -> bool:
        connection = http.client.HTTPConnection(urlsplit(self.cluster.url).netloc, timeout=2)
        try:
            connection.request("GET", "/v2/models/steady/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _carry_out(self, plan: Plan) -> None:
        began = time.monotonic()
        steps: list[tuple[float, Callable[[Scene, Fault], None], Fault]] = []
        for fault in plan.faults:
            steps.append((fault.at_s, kinds.begin, fault))
            steps.append((fault.at_s + fault.for_s, kinds.clear, fault))
        for at_s, step, fault in sorted(steps, key=lambda step: step[0]):
            time.sleep(max(0.0, began + at_s - time.monotonic()))
            step(self.scene, fault)

    def _wait_for_goodput(self, run: Run, traffic: Traffic, cleared: int) -> None:
        window = round(WINDOW_S * NS_PER_S)
        limit = cleared + round((run.back_within_s + 1.0) * NS_PER_S) + SLO_NS
        while now_ns() < limit:
            time.sleep(0.03)
            end = now_ns() - SLO_NS - 20 * NS_PER_MS
            if end - window < cleared:
                continue
            run.shares = {load.model: traffic.good_share(load.model, end - window, end) for load in LOADS}
            if min(run.shares.values()) >= BACK:
                run.back_s = (end - cleared) / NS_PER_S
                return
        ends = Counter(sent.error or sent.outcome for sent in traffic.sent if sent.sent_ns > limit - NS_PER_S)
        run.state = f"lately {dict(ends)}; {self._state()}"

    def _state(self) -> dict[str, Any]:
        """What the scheduler says of models and workers, in short."""
        status = self.control.status()
        state = {name: (model["drift"], model["queued"], model["slots"]) for name, model in status["models"].items()}
        keys = ("serving", "draining", "in_flight", "pace", "control_ns", "reply_ns")
        state |= {address: {key: worker.get(key) for key in keys} for address, worker in status["workers"].items()}
        return state | {key: status[key] for key in ("timer_lateness_ns", "client_round_trip_ns", "slack_ns")}

    def _wait_for_quiet(self) -> str:
        """What is still under way when nobody asks for anything any more; "" when nothing is."""
        end = time.monotonic() + 5
        while True:
            status = self.control.status()
            queued = {name: model["queued"] for name, model in status["models"].items() if model["queued"]}
            flying = {a: w["in_flight"] for a, w in status["workers"].items() if w.get("in_flight")}
            if not queued and not flying:
                return ""
            if time.monotonic() > end:
                return f"queued {queued}, in flight {flying}"
            time.sleep(0.02)

    def _validate(self) -> str:
        return str(self.control.client.run_on_scheduler(invariants))

    def _counts(self) -> dict[str, Counter[str]]:
        return {name: Counter(model["outcomes"]) for name, model in self.control.status()["models"].items()}

    def _connect(self) -> None:
        """Two clients: one for what has to be asked of the cluster, one for the traffic, through its link."""
        for client in self._clients:
            client.close(timeout=2)
        self._clients = [
            Client(address, set_as_default=False, timeout=120)
            for address in (self.cluster.address, self.cluster.linked_address)
        ]
        self.control, self.serving = (Serving(client) for client in self._clients)

    def _again(self) -> None:
        """There is another scheduler."""
        self._another = True
        self._connect()
        self.scene.control = self.control
        for load in LOADS:
            wait_until(lambda name=load.model: name in self.control.status()["models"], "the models", 60)
            self.serving.find(load.model)
        self._traffic.serving = self.serving

    def _lane_number(self) -> int:
        direct = self.serving.lane._direct
        return direct._client if direct is not None else -1

    def _mount(self) -> None:
        if os.geteuid() != 0:
            return
        command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.runs)]
        self._mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0


def invariants(dask_scheduler: Any) -> str:
    """What is wrong with the engine's state; "" when nothing is."""
    try:
        dask_scheduler.plugins["symphony"].dispatcher.engine.validate()
    except AssertionError as error:
        return str(error)
    return ""
