"""``symphony bound``: the published figure, and refusals."""

from __future__ import annotations

from tests.helpers.command_line import printed, refusal


def test_the_bound_of_eight_gpus_is_the_published_one() -> None:
    found = printed("bound", "--profile", "1.053,5.072", "--slo", "25ms", "--models", "1", "--gpus", "8", "--json")
    assert round(found["bound_hz"]) == 5875


def test_bad_input_is_refused_with_the_value_and_the_remedy() -> None:
    gpus = ("--gpus", "8")
    assert "profile '1.053' cannot be read" in refusal("bound", "--profile", "1.053", "--slo", "25ms", *gpus)
    assert "slo '25 parsecs' cannot be read" in refusal("bound", "--profile", "1,5", "--slo", "25 parsecs", *gpus)
    classes = ("--slo", "25ms", "--gpus", "4xfast,4xslow")
    assert "no profile for GPU class 'slow': give --profile slow=ALPHA,BETA" in refusal(
        "bound", "--profile", "fast=1,5", *classes
    )
    assert "--gpus 4xfast,4xslow has no GPU class 'new'" in refusal("bound", "--profile", "new=1,5", *classes)
