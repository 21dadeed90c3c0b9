"""Runs the control loop: reads signals, asks the policy, reconciles the fleet; again every ``interval_s``. Nothing that
it keeps is needed after a restart.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from autoscale.fleet.act import Backoff, Cluster, Step, step
from autoscale.fleet.fleet import FleetError, FleetProtocol, Throttled
from autoscale.fleet.reconcile import phases
from autoscale.fleet.view import Memory, Settings, View
from symphony_dask.errors import NotServing

logger = logging.getLogger(__name__)

#: A model that waits for a first GPU to be deployed on wants so many.
GPUS_TO_DEPLOY_ON = 1


@dataclass(frozen=True)
class Decision:
    """GPUs that there should be, why, and what that was decided from, as JSON."""

    gpus: int
    why: str
    inputs: dict[str, Any]


class Notices(Protocol):
    """Where the cloud says which instances it takes back (``ec2.SpotNotices``)."""

    def poll(self) -> frozenset[str]: ...

    def done(self) -> None: ...


#: How many GPUs, given those ready, booting and draining; may raise ``NotServing``.
Decide = Callable[[int, int, int], Decision]


@dataclass
class Controller:
    """Runs one fleet. fleet and cluster may be any; decide: see ``by_policy``; interval_s: between looks."""

    settings: Settings
    fleet: FleetProtocol
    cluster: Cluster
    decide: Decide
    interval_s: float = 2.0
    notices: Notices | None = None
    record: Callable[[dict[str, Any], dict[str, Any]], None] = lambda inputs, decision: None
    on_step: Callable[[Step, Decision], None] = lambda step, decision: None
    memory: Memory = field(default_factory=Memory)
    backoff: Backoff = field(default_factory=Backoff)
    stopped: bool = False
    _report: dict[str, Any] | None = None

    def run(self) -> None:
        """Tick until ``stopped`` is set."""
        while not self.stopped:
            begin = time.monotonic()
            self.tick()
            while not self.stopped and (left := begin + self.interval_s - time.monotonic()) > 0:
                time.sleep(min(left, 0.2))

    def tick(self) -> Step | None:
        """One look and what follows; None where nothing could be seen, which is logged."""
        if self.backoff.quiet(time.monotonic()):
            return None
        try:
            done = self._tick()
        except Throttled as error:
            self._throttled(str(error))
            return None
        except (FleetError, NotServing) as error:
            logger.warning("nothing done: %s", error)
            return None
        if done.throttled:
            self._throttled(done.faults[-1])
        else:
            self.backoff.worked()
        return done

    def _throttled(self, text: str) -> None:
        wait_s = self.backoff.throttled(time.monotonic())
        logger.warning("quiet for %.1f s: %s", wait_s, text)

    def _tick(self) -> Step:
        instances, view = self.fleet.list(), self.cluster.view(self.fleet.name, self._report)
        now = Step(instances, phases(instances, view), self.memory)
        decision = self._decide(now, view)
        interrupted = self.notices.poll() if self.notices is not None else frozenset()
        done = step(
            self.settings,
            self.fleet,
            self.cluster,
            self.memory,
            decision.gpus,
            seen=(instances, view),
            interrupted=interrupted,
        )
        self.memory = done.memory
        if interrupted and self.notices is not None:
            self.notices.done()
        outcome = {"gpus": decision.gpus, "policy": decision.why, **done.summary()}
        most_usd = self.settings.max_usd_per_hour
        self._report = {
            **outcome,
            "max_instances": self.settings.max_instances,
            "max_usd_per_hour": most_usd if math.isfinite(most_usd) else None,
        }
        self.record(decision.inputs, outcome)
        for text in done.actions:
            logger.info("%s", text)
        for text in done.faults:
            logger.warning("%s", text)
        self.on_step(done, decision)
        return done

    def _decide(self, now: Step, view: View) -> Decision:
        ready, booting = now.gpus("joined"), now.gpus("launching", "booting")
        decision = self.decide(ready, booting, now.gpus("draining", "terminating"))
        if view.loading and decision.gpus < GPUS_TO_DEPLOY_ON and ready == 0:
            why = f"{', '.join(view.loading)} to be deployed; {decision.why}"
            return Decision(GPUS_TO_DEPLOY_ON, why, decision.inputs)
        return decision


def by_policy(name: str, settings: Any, signals: Callable[[], Any]) -> Decide:
    """Decide by a policy of ``policy.POLICIES`` with its settings, on what ``signals()`` gives."""
    from autoscale.policies.registry import POLICIES, Fleet
    from autoscale.policies.registry import Memory as PolicyMemory

    policy, memory = POLICIES[name], PolicyMemory()

    def decide(ready: int, booting: int, draining: int) -> Decision:
        nonlocal memory
        seen, fleet = signals(), Fleet(ready, booting, draining)
        memory, target = policy(settings, memory, seen, fleet)
        inputs = {"policy": name, "fleet": asdict(fleet), "signals": asdict(seen)}
        return Decision(target.gpus, target.why, json.loads(json.dumps(inputs)))

    return decide


def fixed(gpus: int) -> Decide:
    """Always so many."""
    return lambda ready, booting, draining: Decision(gpus, "fixed", {})
