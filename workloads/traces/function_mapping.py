"""Maps the functions of a trace to the models that serve their requests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from symphony_dask.errors import BadInput

#: Rules by name. Functions are numbered in order of their first row in the file; N is the number of models.
#: popularity: functions by requests, most first, dealt in turn: model k has those of rank k, k+N, ... So model 0 is the
#:     most popular and the skew stays.
#: round-robin: functions dealt in turn as they are numbered.
#: stripe: model k has the k-th of N runs of functions with successive numbers, so that functions which appear together
#:     stay together.
RULES = ("popularity", "round-robin", "stripe")


def model_of_function(rule: str, requests: npt.NDArray[np.int64], models: int) -> npt.NDArray[np.int32]:
    """The model of each function, shape (functions,).

    requests: (functions,) how many requests each has in the whole file. Raises ``BadInput`` for an unknown rule, or
    fewer than one model.
    """
    if models < 1:
        raise BadInput(f"models is {models}: give at least 1")
    n = len(requests)
    number = np.arange(n)
    if rule == "popularity":
        rank = np.empty(n, np.int64)
        rank[np.argsort(-requests, kind="stable")] = number
        return (rank % models).astype(np.int32)
    if rule == "round-robin":
        return (number % models).astype(np.int32)
    if rule == "stripe":
        return (number * models // max(n, 1)).astype(np.int32)
    raise BadInput(f"rule {rule!r} is unknown: use one of {', '.join(RULES)}")
