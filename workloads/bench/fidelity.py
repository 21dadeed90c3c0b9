"""Compares live runs with simulated ones on the same arrivals: ``symphony bench fidelity``.

Live: a real Dask scheduler and four workers of one emulated GPU each, all processes of their own on this machine, and
the load generator. Simulated: the engine under a virtual clock, told the network delays that the live cluster measured
while it served, and the slack that it had. Rule of counting, in both: a request is good if it is answered within the
SLO of the time at which it was due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from distributed import Client

from symphony_dask.backends import Emulated
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.dispatcher.dispatcher import SLACK_SHARE
from symphony_dask.engine.latency_profile import LatencyProfile
from symphony_dask.errors import BadInput
from symphony_dask.units import NS_PER_MS, format_duration
from workloads.compare.bound import BoundModel, goodput_bound
from workloads.compare.goodput import goodput, mix_arrivals
from workloads.live import load_generator
from workloads.live.local_cluster import ProcessCluster
from workloads.simulation.result import SimModel
from workloads.simulation.simulate import SimulatedRun, simulate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GPUS = 4

SYSTEM = "symphony-dask"

#: Share of requests that must be good.
ATTAINMENT = 0.99

#: Shares of the live goodput at which live and simulated are compared.
SHARES = (0.5, 0.8, 0.95)

#: Halvings of the live search between what surely holds and what surely does not; rates are then known to 1.4 %.
_STEPS = 5

#: The load under which delays are measured, as a share of the bound.
_MEASURING = 0.5


@dataclass(frozen=True)
class Setting:
    """Some models alike, equally popular, on ``GPUS`` GPUs."""

    name: str
    alpha_ms: float
    beta_ms: float
    slo_ms: float
    models: int = 1

    @property
    def profile(self) -> LatencyProfile:
        return LatencyProfile(self.alpha_ms, self.beta_ms)

    @property
    def slo_ns(self) -> int:
        return round(self.slo_ms * NS_PER_MS)

    @property
    def bound_hz(self) -> float:
        """``workloads.compare.bound`` of the setting, req/s."""
        one = BoundModel(self.profile, self.slo_ns, 1 / self.models)
        return goodput_bound([one] * self.models, GPUS).bound_hz


#: The settings of the peers' table, and a mix.
SETTINGS = (
    Setting("resnet50-25ms", 1.053, 5.072, 25),
    Setting("inception-70ms", 5.090, 18.368, 70),
    Setting("resnet50-100ms", 1.053, 5.072, 100),
    Setting("8-models-100ms", 1.053, 5.072, 100, models=8),
)


@dataclass(frozen=True)
class Delays:
    """What the live cluster measured, ns, and how early its windows open."""

    control_ns: int
    reply_ns: int
    slack_ns: int


class Live:
    """A setting deployed on a real cluster; a context manager."""

    def __init__(self, setting: Setting, policy: str) -> None:
        self.setting, self.policy = setting, policy
        self._cluster = ProcessCluster(GPUS)

    def __enter__(self) -> Live:
        self._cluster.__enter__()
        try:
            self._client = Client(self._cluster.address)
            self.serving = Serving(self._client)
            self.serving.set_policy(self.policy)
            model = Emulated(self.setting.alpha_ms, self.setting.beta_ms)
            slo = format_duration(self.setting.slo_ns)
            self.models: list[Model] = [
                self.serving.deploy(f"model-{k}", model, slo=slo) for k in range(self.setting.models)
            ]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for part in (getattr(self, "serving", None), getattr(self, "_client", None)):
            if part is not None:
                part.close()
        self._cluster.__exit__()

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return self._cluster.address

    def run(self, rate_hz: float, seconds: float, seed: int = 0) -> tuple[load_generator.Loaded, float | None]:
        """Offer Poisson arrivals; returns what became of them and the mean batch."""
        arrivals, choices = mix_arrivals(self.setting.models, rate_hz, seconds, seed=seed)
        before = self._served()
        loaded = load_generator.offer(
            self.serving, self.models, arrivals, choices, samples=[bytes(100)] * len(self.models)
        )
        requests, batches = (now - then for now, then in zip(self._served(), before, strict=True))
        return loaded, requests / batches if batches else None

    def delays(self) -> Delays:
        """As estimated by now: from a decision to the start of a batch, and from its end to the client."""
        status = self.serving.status()
        workers = status["workers"].values()
        control = fmean(w["control_mean_ns"] for w in workers)
        reply = fmean(w["reply_mean_ns"] for w in workers)
        reply += status["client_round_trip_ns"] + status["client_in_hand_ns"]
        return Delays(round(control), round(reply), status["slack_ns"])

    def _served(self) -> tuple[int, int]:
        """Requests that were answered, and batches, so far."""
        models = self.serving.status()["models"].values()
        answered = sum(m["outcomes"][o] for m in models for o in ("ok", "late"))
        return answered, sum(m["batches"] for m in models)


def bench_fidelity(
    settings: Sequence[Setting] = SETTINGS,
    *,
    policy: str = "adaptive",
    seconds: float = 8.0,
    on_progress: Callable[[str], None] = lambda s: None,
) -> dict[str, Any]:
    """For each setting its goodput live and simulated, and both at ``SHARES`` of the live goodput.

    seconds: length of each live run. Raises ``BadInput`` unless it is above 0.
    """
    if not seconds > 0:
        raise BadInput(f"seconds={seconds}: give a number above 0")
    rows: list[dict[str, Any]] = []
    for setting in settings:
        on_progress(f"{setting.name}: starting {GPUS} workers")
        with Live(setting, policy) as live:
            found = _goodput_rows(live, seconds, on_progress)
        rows += found
        holds = found[-1]["goodput_hz"]
        for share in SHARES if holds else ():
            # From a fresh start, as the simulation: adaptive remembers an overload for some hundred batches.
            with Live(setting, policy) as live:
                rows.append(_share_row(live, share, holds, seconds, on_progress))
    return {
        "label": "live: measured, GPUs emulated, everything else real; simulated: the engine under a virtual clock",
        "gpus": GPUS,
        "policy": policy,
        "rows": rows,
    }


def live_goodput(
    live: Live, seconds: float, highest_hz: float, on_progress: Callable[[str], None] = lambda s: None
) -> float:
    """The highest rate tried at which ``ATTAINMENT`` of the requests are good, at most ``highest_hz``; 0 if none is.

    Every rate has the same gaps, only scaled.
    """

    def good(rate_hz: float) -> float:
        loaded, _ = live.run(rate_hz, seconds)
        share = float(loaded.ok.mean())
        on_progress(f"{live.setting.name}: {rate_hz:,.0f} req/s, {share:.2%} good")
        return share

    return highest_rate(good, highest_hz, ATTAINMENT)


def highest_rate(good: Callable[[float], float], highest_hz: float, attainment: float) -> float:
    """The highest rate tried with ``good(rate) >= attainment``, at most ``highest_hz``; 0 if none is.

    Half of that, halved until it holds, then a bisection on a logarithmic scale. A rate that does not hold is tried
    once more, since other work on the machine can spoil a run.
    """
    low, high, holds = highest_hz / 2, highest_hz, 0.0
    tried = low
    for _ in range(_STEPS + 1):
        if good(tried) >= attainment or good(tried) >= attainment:
            low = holds = tried
        elif holds == 0.0:
            low, high = tried / 2, tried
        else:
            high = tried
        tried = math.sqrt(low * high) if holds else low
    return holds


def _settle(live: Live, rate_hz: float, seconds: float) -> Delays:
    """Offer a load for a while, at most four seconds, so that delays are known; they are returned."""
    live.run(rate_hz, min(seconds, 4.0), seed=1)
    return live.delays()


def _goodput_rows(live: Live, seconds: float, on_progress: Callable[[str], None]) -> list[dict[str, Any]]:
    setting = live.setting
    delays = _settle(live, _MEASURING * setting.bound_hz, seconds)
    simulated = goodput(
        [SimModel(f"model-{k}", setting.profile, setting.slo_ns) for k in range(setting.models)],
        GPUS,
        policy=lambda models, gpus, arrivals, choices: _simulate(live, delays, arrivals, choices),
        seconds=seconds,
        seeds=1,
    ).goodput_hz
    holds = live_goodput(live, seconds, min(setting.bound_hz, 1.1 * simulated), on_progress)
    common = {"setting": setting.name, "bound_hz": setting.bound_hz, "delays_ms": _ms(delays), "system": SYSTEM}
    return [
        {**common, "label": "simulated", "goodput_hz": simulated},
        {**common, "label": "live", "goodput_hz": holds, "of_simulated": holds / simulated if simulated else None},
    ]


def _share_row(
    live: Live, share: float, goodput_hz: float, seconds: float, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Live and simulated at a share of the goodput, on the same arrivals and with the delays of the live run."""
    setting, rate = live.setting, share * goodput_hz
    _settle(live, rate, seconds)
    loaded, mean_batch = live.run(rate, seconds, seed=2)
    seen = loaded.to_dict()
    delays = live.delays()
    arrivals, choices = mix_arrivals(setting.models, rate, seconds, seed=2)
    run = _simulate(live, delays, arrivals, choices)
    on_progress(
        f"{setting.name} at {share:.0%}: live {seen['attainment']:.2%}, {mean_batch or 0:.2f} a batch; "
        f"simulated {run.attainment:.2%}, {run.mean_batch:.2f}"
    )
    return {
        "setting": setting.name,
        "bound_hz": setting.bound_hz,
        "system": SYSTEM,
        "label": "live and simulated",
        "share": share,
        "offered_hz": seen["offered_hz"],
        "goodput_hz": seen["goodput_hz"],
        "delays_ms": _ms(delays),
        "live_attainment": seen["attainment"],
        "simulated_attainment": run.attainment,
        "live_mean_batch": mean_batch,
        "simulated_mean_batch": run.mean_batch,
        "generator_lateness_p99_ms": seen["lateness_p99_ms"],
    }


def _simulate(
    live: Live, delays: Delays, arrivals: npt.NDArray[np.int64], choices: npt.NDArray[np.int32]
) -> SimulatedRun:
    setting = live.setting
    return simulate(
        [SimModel(f"model-{k}", setting.profile, setting.slo_ns) for k in range(setting.models)],
        GPUS,
        arrivals,
        choices,
        policy=live.policy,
        control_ns=delays.control_ns,
        reply_ns=delays.reply_ns,
        slack_ns=delays.slack_ns,
        slack_share=SLACK_SHARE,
    )


def _ms(delays: Delays) -> dict[str, float]:
    return {
        "control": delays.control_ns / NS_PER_MS,
        "reply": delays.reply_ns / NS_PER_MS,
        "slack": delays.slack_ns / NS_PER_MS,
    }
