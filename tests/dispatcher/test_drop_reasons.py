"""What the error of a dropped request says. Times in ms."""

from __future__ import annotations

import pytest

from symphony_dask.dispatcher.drop_reasons import why_dropped

MS = 1_000_000


def why(*, model: int = 30, slo: int = 30, network: int = 2, declared: int | None = 21, planned: int = 21) -> str:
    given = None if declared is None else declared * MS
    return why_dropped("tight", model * MS, slo * MS, network * MS, given, planned * MS)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (
            {},
            "no GPU could answer within the SLO of model 'tight', 30ms: "
            "add GPUs, offer fewer requests, or raise the SLO",
        ),
        (
            {"declared": 40, "planned": 40},
            "no GPU can answer within the SLO of model 'tight', 30ms: l(1), a batch of one, takes 40ms by its profile: "
            "give more time",
        ),
        (
            {"network": 12},
            "no GPU can answer within the SLO of model 'tight', 30ms: l(1), a batch of one, takes 21ms by its profile, "
            "and the network, Dask's processes and the client take 12ms more: give more time",
        ),
        (
            {"planned": 42},
            "estimates say that no GPU can answer within the SLO of model 'tight', 30ms: l(1), a batch of one, takes "
            "21ms by its profile, its batches took 2.00 times that, 42ms; a request is tried every 100ms or more to "
            "see whether that still holds: measure the profile anew (deploy with example=), or raise the SLO",
        ),
        (
            {"declared": None},
            "no GPU had loaded model 'tight' in time to answer within the SLO of model 'tight', 30ms: see "
            "serving.status(), give it pinned=True, or more GPU memory",
        ),
        (
            {"slo": 5},
            "no GPU can answer within what this request had left, 5ms (the SLO of model 'tight' is 30ms): l(1), a "
            "batch of one, takes 21ms by its profile: give more time",
        ),
    ],
)
def test_the_text_says_what_is_short_by_how_much_and_what_to_do(facts: dict[str, int | None], text: str) -> None:
    assert why(**facts) == text  # type: ignore[arg-type]
