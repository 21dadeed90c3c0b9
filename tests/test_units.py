from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from symphony_dask.errors import BadInput
from symphony_dask.units import Seconds, format_duration, parse_duration_ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("25ms", 25_000_000),
        ("1.5s", 1_500_000_000),
        (" 2 m ", 120_000_000_000),
        ("2min", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("7us", 7_000),
        ("7µs", 7_000),
        ("3ns", 3),
        (".5ms", 500_000),
        ("25MS", 25_000_000),
        (Seconds(0.025), 25_000_000),
    ],
)
def test_durations_are_read_as_people_write_them(text: str | Seconds, ns: int) -> None:
    assert parse_duration_ns(text) == ns


@pytest.mark.parametrize("text", ["25 parsecs", "25", "ms", "-1s", "1e3s", "", "1s 2s", "٣ms"])
def test_other_text_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(BadInput, match=r'write slo with a unit, such as "25ms"') as error:
        parse_duration_ns(text, "slo")
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (25, "25"),
        (0.025, "0.025"),
        ("25", "25"),
        (np.int64(25), "25"),
        (np.float32(0.5), "0.5"),
        (0, "0"),
        (-1, "-1"),
        (float("nan"), "nan"),
    ],
)
def test_a_number_without_a_unit_is_refused_with_what_it_may_mean(value: object, number: str) -> None:
    with pytest.raises(BadInput, match=rf'has no unit: write slo with a unit, such as "{number}ms" .* "{number}s"'):
        parse_duration_ns(value, "slo")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, True, np.bool_(True), [1], b"25ms"])
def test_other_types_are_refused_by_name(value: object) -> None:
    with pytest.raises(BadInput, match=f"is a {type(value).__name__}"):
        parse_duration_ns(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value", [Seconds(0), Seconds(-1), Seconds("nan"), Seconds("inf"), "0s", "0.1ns", "9" * 400 + "s"],
    ids=lambda v: str(v)[:6],
)  # fmt: skip
def test_what_is_not_positive_or_not_finite_is_refused(value: str | Seconds) -> None:
    with pytest.raises(BadInput, match="out of range"):
        parse_duration_ns(value)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (25_000_000, "25ms"),
        (1_500_000_000, "1.5s"),
        (999, "999ns"),
        (1_000, "1us"),
        (12_345, "12.3us"),
        (120_000_000_000, "120s"),
        (5_000_000_000_000, "5000s"),
    ],
)
def test_durations_are_shown_with_three_digits(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@example(999_600_000_000)
@example(999_700_000)
@given(st.integers(1, 10**15))
def test_what_is_shown_can_be_read_and_is_right_to_three_digits(ns: int) -> None:
    assert parse_duration_ns(format_duration(ns)) == pytest.approx(ns, rel=0.006)
