"""Makes a new price table from AWS's own price list, in the form of ``ec2_gpu_prices.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from autoscale.providers.ec2 import client
from symphony_dask.cli.error_line import aws_error
from symphony_dask.errors import BadInput, SymphonyError

#: The price list is served from here, for all regions.
LIST_REGION = "us-east-1"

#: One product an instance type: Linux, shared hardware, nothing preinstalled, no reservation.
_PLAIN = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}


def refreshed(old: Mapping[str, Any], region: str, *, endpoint_url: str | None = None) -> dict[str, Any]:
    """The instance types of ``old`` with the prices of today; raises ``SymphonyError`` if AWS does not give them."""
    from botocore.exceptions import BotoCoreError, ClientError

    pricing = client("pricing", region=LIST_REGION, endpoint_url=endpoint_url)
    rows = []
    for row in old["instances"]:
        wanted = {**_PLAIN, "instanceType": row["instance"], "regionCode": region}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        try:
            pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters)
            products = [json.loads(text) for page in pages for text in page["PriceList"]]
        except (ClientError, BotoCoreError) as error:
            text = f"AWS's price list was not read: {aws_error(error)}"
            raise SymphonyError(f"{text}; the role needs pricing:GetProducts") from error
        usd = usd_per_hour(products)
        if usd is not None:  # not every type is offered in every region
            rows.append({**row, "usd_per_hour": usd})
    if not rows:
        raise BadInput(f"AWS lists none of the known GPU instance types in {region!r}: is that a region?")
    return {
        "as_of": f"{datetime.now(UTC):%Y-%m-%d}",
        "region": region,
        "terms": old["terms"],
        "source": "AWS's price list (pricing:GetProducts)",
        "note": "symphony autoscale prices --refresh makes it anew; --price CLASS=USD overrides a row",
        "instances": rows,
    }


def usd_per_hour(products: Iterable[Mapping[str, Any]]) -> float | None:
    """The price on demand of what is listed for one instance type; None if there is none. The highest, if several."""
    found = [
        float(dimension["pricePerUnit"]["USD"])
        for product in products
        for offer in product.get("terms", {}).get("OnDemand", {}).values()
        for dimension in offer["priceDimensions"].values()
        if dimension.get("unit") == "Hrs" and "USD" in dimension["pricePerUnit"]
    ]
    return max((usd for usd in found if usd > 0), default=None)


def as_text(table: Mapping[str, Any]) -> str:
    """A price table as JSON with an instance type a line, so that a diff of two shows what has changed."""
    text = json.dumps(dict(table), indent=2)
    return (
        re.sub(r"\{\s+(\"instance\":[^{}]*?)\s+\}", lambda m: "{" + re.sub(r"\s*\n\s*", " ", m[1]) + "}", text) + "\n"
    )
