from __future__ import annotations

import json

import pytest

from symphony_dask.engine.latency_profile import LatencyProfile

MS = 1_000_000


def test_latency_is_alpha_b_plus_beta_and_nothing_for_no_request() -> None:
    assert LatencyProfile(1, 5, max_batch=3).latency_ns().tolist() == [0, 6 * MS, 7 * MS, 8 * MS, 9 * MS]


def test_the_text_form_is_alpha_comma_beta_in_ms() -> None:
    assert LatencyProfile.parse("1.053, 5.072", max_batch=64) == LatencyProfile(1.053, 5.072, 64)


@pytest.mark.parametrize("text", ["", "1.053", "1,2,3", "fast,slow", "1;2"])
def test_a_text_that_cannot_be_read_is_shown_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r'cannot be read: write "alpha,beta" in ms, such as "1.053,5.072"'):
        LatencyProfile.parse(text)


def test_a_table_is_interpolated_and_alpha_extends_it() -> None:
    profile = LatencyProfile(2, 99, max_batch=6, table=((1, 4.0), (3, 8.0), (4, 9.5)))
    # Size 2 lies halfway between 4 and 8; sizes 5 to 7 go on from 9.5 by 2 each.
    assert profile.latency_ns().tolist() == [0, 4 * MS, 6 * MS, 8 * MS, 9_500_000, 11_500_000, 13_500_000, 15_500_000]


def test_below_its_first_size_a_table_is_flat() -> None:
    profile = LatencyProfile(1, 0, max_batch=3, table=((2, 7.0), (4, 9.0)))
    assert profile.latency_ns().tolist() == [0, 7 * MS, 7 * MS, 8 * MS, 9 * MS]


def test_a_table_that_falls_is_levelled() -> None:
    profile = LatencyProfile(1, 0, max_batch=3, table=((1, 5.0), (2, 4.0), (3, 6.0)))
    assert profile.latency_ns().tolist() == [0, 5 * MS, 5 * MS, 6 * MS, 7 * MS]


def test_the_extension_starts_at_the_levelled_end_or_above() -> None:
    profile = LatencyProfile(1, 0, max_batch=3, table=((1, 5.0), (2, 3.0)))
    # 3 + 1 and 3 + 2 ms by alpha, but never less than the 5 ms of one request.
    assert profile.latency_ns().tolist() == [0, 5 * MS, 5 * MS, 5 * MS, 5 * MS]


@pytest.mark.parametrize(("alpha", "beta"), [(-1, 5), (1, -5), (float("nan"), 5), (1, float("inf"))])
def test_alpha_and_beta_must_be_finite_and_not_negative(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match="both must be finite ms, at least 0"):
        LatencyProfile(alpha, beta)


@pytest.mark.parametrize("max_batch", [0, 4097])
def test_max_batch_has_bounds(max_batch: int) -> None:
    with pytest.raises(ValueError, match=f"max_batch={max_batch}: must lie between 1 and 4096"):
        LatencyProfile(1, 5, max_batch)


@pytest.mark.parametrize("sizes", [(0, 1), (2, 1), (1, 1)])
def test_table_sizes_must_be_positive_and_rising(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be positive and rising"):
        LatencyProfile(1, 5, table=tuple((b, 1.0) for b in sizes))


@pytest.mark.parametrize("profile", [LatencyProfile(1.5, 5), LatencyProfile(1, 5, 16, ((1, 6.0), (8, 12.5)))])
def test_a_profile_survives_json(profile: LatencyProfile) -> None:
    assert LatencyProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
