from __future__ import annotations

import pytest

from symphony_dask.errors import BadInput
from workloads.traces.zoo import ZOO, by_class, checked_shares, equal, zipf


def test_resnet50_takes_1053_us_a_request_and_5072_us_a_batch() -> None:
    entry = ZOO["resnet50"]
    assert entry.gpu_class == "gtx-1080ti"
    assert entry.profile.latency_ns()[1:3].tolist() == [6_125_000, 7_178_000]
    assert entry.slo_ns == 25_000_000
    assert "2308.07470" in entry.source


def test_every_entry_is_listed_by_its_name_can_meet_its_slo_and_says_where_it_is_from() -> None:
    assert {"resnet50", "resnet50-variant", "inception-resnet-v2", "resnet50-clockwork"} <= set(ZOO)
    for name, entry in ZOO.items():
        assert entry.name == name
        assert entry.profile.latency_ns()[1] < entry.slo_ns
        assert "arXiv" in entry.source or " at " in entry.source


def test_a_published_table_is_used_as_it_stands_and_between_its_sizes_linearly() -> None:
    latency = ZOO["resnet50-clockwork"].profile.latency_ns()
    assert latency[[1, 2, 4, 8, 16]].tolist() == [3_322_000, 5_271_000, 7_495_000, 12_439_000, 21_729_000]
    assert latency[3] == 6_383_000
    assert latency[17] == 21_729_000 + 1_161_250  # as the last two rows go on: 9.29 ms over 8
    assert ZOO["resnet50-clockwork"].profile.max_batch == 16


def test_profiles_of_one_model_by_gpu_class() -> None:
    resnet50, bert = by_class("resnet50-trt"), by_class("bert-large-trt")
    assert {c: p.latency_ns()[16] for c, p in resnet50.items()} == {
        "a40": 9_678_000,
        "a100": 5_793_000,
        "v100": 9_266_000,
        "t4": 15_113_000,
    }
    assert {p.max_batch for p in resnet50.values()} == {128}
    assert sorted(bert) == ["a100", "a30", "t4", "v100"]
    with pytest.raises(BadInput, match="choose one of bert-large-trt, resnet50-trt"):
        by_class("gpt")


def test_equal_shares_are_equal() -> None:
    assert equal(4) == [0.25, 0.25, 0.25, 0.25]


def test_zipf_with_exponent_one_weighs_by_the_inverse_of_the_rank() -> None:
    assert zipf(3, exponent=1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])


def test_zipf_shares_sum_to_one_and_never_rise() -> None:
    shares = zipf(1000)
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] / shares[1] == pytest.approx(2**0.9)


def test_mixes_of_no_models_and_negative_exponents_are_refused() -> None:
    with pytest.raises(BadInput, match="0 models"):
        equal(0)
    with pytest.raises(BadInput, match="exponent -1"):
        zipf(3, exponent=-1)


@pytest.mark.parametrize("shares", [[], [0.5, 0.4], [1.5, -0.5], [float("nan"), 1.0]])
def test_shares_that_are_no_shares_are_refused(shares: list[float]) -> None:
    with pytest.raises(BadInput, match="shares"):
        checked_shares(shares)
