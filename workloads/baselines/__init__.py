"""Simulates other schedulers in virtual time, to be compared with: each file names its source, rules and faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from workloads.baselines import clipper, clockwork, nexus, offline, replica_timeout, shepherd
from workloads.simulation.result import SimModel, Simulated

#: (models, gpus, arrivals_ns, choices) -> what became of the requests. arrivals_ns: (n,) ns, in order; choices: (n,)
#: indices into ``models``. Raises ``BadInput``; ``nexus.CannotPlace`` is one.
Baseline = Callable[[Sequence[SimModel], int, npt.NDArray[np.int64], npt.NDArray[np.int32]], Simulated]

#: Every baseline by name.
BASELINES: dict[str, Baseline] = {
    "clockwork": clockwork.clockwork,
    "nexus": nexus.nexus,
    "shepherd": shepherd.shepherd,
    "replica-timeout": replica_timeout.replica_timeout,
    "clipper": clipper.clipper,
    "offline": offline.offline,
}
