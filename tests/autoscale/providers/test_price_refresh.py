"""A price table made from AWS's price list; its answers are made up, in the form that AWS documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask.config
import pytest

from autoscale.providers import price_refresh
from autoscale.providers.price_refresh import as_text, refreshed, usd_per_hour
from autoscale.providers.prices import prices, table
from symphony_dask.errors import BadInput


def product(instance_type: str, usd: str, unit: str = "Hrs") -> dict[str, Any]:
    """One entry of ``PriceList``, without attributes that nobody reads."""
    return {
        "product": {
            "productFamily": "Compute Instance",
            "sku": "YXCAXK3Z8QJFX2J5",
            "attributes": {"instanceType": instance_type, "gpu": "1", "regionCode": "us-east-1", "tenancy": "Shared"},
        },
        "serviceCode": "AmazonEC2",
        "terms": {
            "OnDemand": {
                "YXCAXK3Z8QJFX2J5.JRTCKXETXF": {
                    "priceDimensions": {
                        "YXCAXK3Z8QJFX2J5.JRTCKXETXF.6YS6EN2CT7": {
                            "unit": unit,
                            "description": f"${usd} per On Demand Linux {instance_type} Instance Hour",
                            "pricePerUnit": {"USD": usd},
                        }
                    },
                    "effectiveDate": "2026-11-01T00:00:00Z",
                    "termAttributes": {},
                }
            }
        },
        "version": "20261101000000",
        "publicationDate": "2026-11-01T00:00:00Z",
    }


class PriceList:
    """What boto3's client of the price list is used for."""

    def __init__(self, listed: dict[str, list[dict[str, Any]]]) -> None:
        self.listed = listed
        self.asked: list[dict[str, str]] = []

    def get_paginator(self, operation: str) -> PriceList:
        assert operation == "get_products"
        return self

    def paginate(self, *, ServiceCode: str, Filters: list[dict[str, str]]) -> list[dict[str, Any]]:
        assert ServiceCode == "AmazonEC2"
        wanted = {f["Field"]: f["Value"] for f in Filters}
        self.asked.append(wanted)
        found = self.listed.get(wanted["instanceType"], [])
        return [{"FormatVersion": "aws_v1", "PriceList": [json.dumps(p)]} for p in found]


def refresh(
    monkeypatch: pytest.MonkeyPatch, listed: dict[str, list[dict[str, Any]]]
) -> tuple[dict[str, Any], PriceList]:
    service = PriceList(listed)
    monkeypatch.setattr(price_refresh, "client", lambda *args, **options: service)
    return refreshed(table(), "eu-central-1"), service


def test_the_known_types_get_todays_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    found, service = refresh(
        monkeypatch,
        {"g5.xlarge": [product("g5.xlarge", "1.2580000000")], "g4dn.xlarge": [product("g4dn.xlarge", "0.6580000000")]},
    )
    assert [(r["instance"], r["gpu"], r["gpus"], r["usd_per_hour"]) for r in found["instances"]] == [
        ("g4dn.xlarge", "T4", 1, 0.658),
        ("g5.xlarge", "A10G", 1, 1.258),
    ]
    assert found["region"] == "eu-central-1"
    asked = next(a for a in service.asked if a["instanceType"] == "g5.xlarge")
    assert (asked["regionCode"], asked["operatingSystem"], asked["tenancy"]) == ("eu-central-1", "Linux", "Shared")


def test_a_region_without_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="AWS lists none of the known GPU instance types in 'eu-central-1'"):
        refresh(monkeypatch, {})


def test_what_has_no_hourly_price_on_demand_is_left_out() -> None:
    assert usd_per_hour([]) is None
    assert usd_per_hour([product("g5.xlarge", "0.0000000000")]) is None
    assert usd_per_hour([product("g5.xlarge", "3.5", unit="Quantity")]) is None
    assert usd_per_hour([{"product": {}, "terms": {"Reserved": {}}}]) is None
    assert usd_per_hour([product("g5.xlarge", "1.0"), product("g5.xlarge", "1.1")]) == 1.1


def test_a_written_table_is_used_once_the_setting_names_it(tmp_path: Path) -> None:
    own = {**table(), "as_of": "2026-11-25", "instances": [{"instance": "g9.xlarge", "gpu": "B1", "gpus": 1}]}
    own["instances"][0]["usd_per_hour"] = 0.25
    path = tmp_path / "prices.json"
    path.write_text(as_text(own))
    assert '\n    {"instance": "g9.xlarge", "gpu": "B1", "gpus": 1, "usd_per_hour": 0.25}\n' in path.read_text()
    with dask.config.set({"symphony.prices": str(path)}):
        found = prices().find("g9.xlarge")
        assert found is not None
        assert found.usd_per_hour == 0.25
        assert prices().basis().startswith("EC2 on demand, us-east-1, as of 2026-11-25")


def test_a_table_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"instances": [{"instance": "g5.xlarge"}]}')
    for name in ("bad.json", "none.json"):
        with dask.config.set({"symphony.prices": str(tmp_path / name)}), pytest.raises(BadInput, match="price table"):
            prices()
