"""Simulates replicas, a model on a GPU with a queue of its own, and how requests are spread over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Replicas(NamedTuple):
    """r replicas, those of one GPU next to each other."""

    model: npt.NDArray[np.int64]  # (r,)
    on_gpu: npt.NDArray[np.int64]  # (gpus + 1,): GPU g has replicas on_gpu[g] up to on_gpu[g + 1]


def spread_evenly(n_models: int, gpus: int) -> Replicas:
    """Every GPU to one model, in turn; with more models than GPUs, every model to one GPU, in turn."""
    if n_models <= gpus:
        return Replicas(np.arange(gpus) % n_models, np.arange(gpus + 1))
    on_gpu = np.arange(n_models) % gpus
    return Replicas(np.argsort(on_gpu, kind="stable"), np.searchsorted(np.sort(on_gpu), np.arange(gpus + 1)))


def round_robin(choices: npt.NDArray[np.int32], replicas: Replicas) -> npt.NDArray[np.int32]:
    """The replica of each request: those of a model take turns. Shape (n,)."""
    return in_proportion(choices, replicas, np.ones(len(replicas.model)))


def in_proportion(
    choices: npt.NDArray[np.int32], replicas: Replicas, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.int32]:
    """The replica of each request: those of a model take turns as evenly as their weights allow. Shape (n,).

    weights: (r,), above 0. The j-th turn of a replica comes at (j + 1/2)/weight; turns are taken in order of time.
    """
    replica = np.empty(len(choices), np.int32)
    for model in np.unique(choices):
        requests = np.flatnonzero(choices == model)
        mine = np.flatnonzero(replicas.model == model)
        shares = weights[mine] / weights[mine].sum()
        turns = np.ceil(shares * len(requests)).astype(np.int64) + 1
        owner = np.repeat(mine, turns)
        turn = np.concatenate([(np.arange(t) + 0.5) / share for t, share in zip(turns, shares, strict=True)])
        replica[requests] = owner[np.lexsort((owner, turn))][: len(requests)]
    return replica
