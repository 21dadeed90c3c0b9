"""Which models have colours on the dashboard's page, and in which order they stand there."""

from __future__ import annotations

from typing import Any

from symphony_dask.observe.colours import COLOURS, GREY, Colours
from symphony_dask.observe.overview_text import by_activity


def models(**rates: float) -> list[dict[str, Any]]:
    return [{"name": name, "rate_hz": rate, "ended_hz": rate, "queued": 0} for name, rate in rates.items()]


IDLE = {f"idle{i}": 0.0 for i in range(7)}


def test_the_busy_one_of_eight_models_has_a_colour_and_stands_first() -> None:
    colours = Colours()
    colours.choose(models(**IDLE))  # the page was open before it came
    colours.choose(models(**IDLE, late=0.0))
    assert colours["late"] == GREY
    colours.choose(models(**IDLE, late=50.0))
    assert colours["late"] in COLOURS
    assert [m["name"] for m in by_activity(models(**IDLE, late=50.0))] == ["late", *IDLE]


def test_no_two_models_have_one_colour_and_a_busy_one_keeps_its_own() -> None:
    colours = Colours()
    colours.choose(models(first=10.0))
    first = colours["first"]
    for looks in range(20):
        rates = {f"m{i}": 10.0 + (i * looks) % 7 for i in range(9)}
        colours.choose(models(first=10.0, **rates))
        held = [colours[name] for name in ("first", *rates) if colours[name] != GREY]
        assert len(held) == len(set(held)) == len(COLOURS)
        assert colours["first"] == first


def test_a_colour_comes_back_after_its_model_was_idle() -> None:
    colours = Colours()
    colours.choose(models(back=10.0, **{f"m{i}": 10.0 for i in range(5)}))
    own = colours["back"]
    for _ in range(3):
        colours.choose(models(back=0.0, **{f"m{i}": 10.0 for i in range(6)}))
    assert (colours["back"], colours["m5"]) == (GREY, own)
    colours.choose(models(back=10.0, **{f"m{i}": 10.0 for i in range(5)}, m5=0.0))
    assert (colours["back"], colours["m5"]) == (own, GREY)


def test_a_model_far_busier_than_one_with_a_colour_takes_it_and_one_of_its_rate_does_not() -> None:
    colours = Colours()
    slow = {f"m{i}": 10.0 + i for i in range(6)}
    colours.choose(models(**slow))
    colours.choose(models(**slow, alike=19.0))
    assert colours["alike"] == GREY
    colours.choose(models(**slow, alike=21.0))
    assert (colours["alike"] == GREY, colours["m0"]) == (False, GREY)


def test_rows_of_about_one_rate_stay_in_the_order_of_their_names() -> None:
    for a, b in ((9.0, 10.0), (10.0, 9.0)):
        assert [m["name"] for m in by_activity(models(b=b, a=a, quick=90.0, none=0.0))] == ["quick", "a", "b", "none"]


def test_a_model_that_is_gone_leaves_its_colour() -> None:
    colours = Colours()
    colours.choose(models(**{f"m{i}": 1.0 for i in range(6)}))
    colours.choose(models(**{f"m{i}": 1.0 for i in range(1, 6)}, new=1.0))
    assert colours["new"] in COLOURS
