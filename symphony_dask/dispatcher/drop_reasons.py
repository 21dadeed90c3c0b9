"""Says why a request was dropped and what to do: is its SLO short, do estimates refuse it, or is it the load?

Each drop ends as ``DeadlineExceeded``. The texts tell what was declared from what was observed, so that whoever reads
one knows which of the two to change.
"""

from __future__ import annotations

from symphony_dask.engine.policy.trials import TENTH_NS
from symphony_dask.units import format_duration


def why_dropped(
    name: str, model_slo_ns: int, slo_ns: int, network_ns: int, declared_ns: int | None, planned_ns: int
) -> str:
    """The text of the error of a request that was dropped.

    slo_ns: the request's; model_slo_ns: its model's. network_ns: what of the SLO is kept for the ways there and
    back, and for the client to have the answer in hand.
    declared_ns, planned_ns: l(1) on the best GPU, by the profile and as it was observed; None: no GPU has the model.
    """
    whose = f"the SLO of model {name!r}, {format_duration(slo_ns)}"
    if slo_ns != model_slo_ns:
        own, of_model = format_duration(slo_ns), format_duration(model_slo_ns)
        whose = f"what this request had left, {own} (the SLO of model {name!r} is {of_model})"
    if declared_ns is None:
        text = f"no GPU had loaded model {name!r} in time to answer within {whose}"
        return f"{text}: see serving.status(), give it pinned=True, or more GPU memory"
    left_ns = slo_ns - network_ns
    profile = f"l(1), a batch of one, takes {format_duration(declared_ns)} by its profile"
    if declared_ns > slo_ns:
        return f"no GPU can answer within {whose}: {profile}: give more time"
    if declared_ns > left_ns:
        network = f"the network, Dask's processes and the client take {format_duration(network_ns)} more"
        return f"no GPU can answer within {whose}: {profile}, and {network}: give more time"
    if planned_ns > left_ns:
        observed = f"its batches took {planned_ns / max(1, declared_ns):.2f} times that, {format_duration(planned_ns)}"
        trials = f"a request is tried every {format_duration(TENTH_NS)} or more to see whether that still holds"
        remedy = "measure the profile anew (deploy with example=), or raise the SLO"
        return f"estimates say that no GPU can answer within {whose}: {profile}, {observed}; {trials}: {remedy}"
    return f"no GPU could answer within {whose}: add GPUs, offer fewer requests, or raise the SLO"
