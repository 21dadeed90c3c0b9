"""Reads fields of text as times, counts, sizes and names, and says which cannot be read: those are null."""

from __future__ import annotations

import polars as pl

from symphony_dask.text import MOST_NAME
from symphony_dask.units import NS_PER_S
from workloads.traces.text_lines import value

#: Digits after the point of each unit, down to ns.
UNITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}
ISO = "iso"

#: Times are below this, ns either way, some 146 years: then their differences are ns in 64 bits too.
MOST_NS = 1 << 62


def ns_of(text: pl.Expr, unit: str, most_ns: int = MOST_NS) -> pl.Expr:
    """A number of ``unit`` as int64 ns, exactly, or null; more digits than ns have are rounded."""
    ns = text.cast(pl.Decimal(38, UNITS[unit]), strict=False).to_physical().cast(pl.Int64, strict=False)
    return pl.when(ns.is_between(-most_ns, most_ns)).then(ns)


def ns_of_iso(text: pl.Expr) -> pl.Expr:
    """A time as int64 ns since 1970, or null; UTC unless it ends in an offset such as +02:00."""
    local = text.str.strip_suffix("Z").str.replace("T", " ", literal=True)
    offset = local.str.extract(r"([+-]\d\d:?\d\d)$")
    plain = local.str.replace(r"\s*[+-]\d\d:?\d\d$", "")
    form = "%Y-%m-%d %H:%M:%S%.f"
    local_ns = plain.str.to_datetime(form, time_unit="ns", strict=False).dt.epoch("ns")
    # Beyond the years that ns have in 64 bits they are wrong, and not null.
    us = plain.str.to_datetime(form, time_unit="us", strict=False).dt.epoch("us")
    digits = offset.str.replace(":", "", literal=True)
    minutes = digits.str.slice(1, 2).cast(pl.Int64) * 60 + digits.str.slice(3, 2).cast(pl.Int64)
    ahead_ns = pl.when(digits.str.starts_with("-")).then(-minutes).otherwise(minutes) * (60 * NS_PER_S)
    ns = local_ns - ahead_ns.fill_null(0)
    return pl.when((local_ns.floordiv(1000) == us) & ns.is_between(-MOST_NS, MOST_NS)).then(ns)


def unnameable(name: pl.Expr) -> pl.Expr:
    """Whether no model can have that name (``text.check_name``)."""
    return name.str.contains(r"[\p{C}[\p{Z}--[ ]]]") | (name.str.len_chars() > MOST_NAME)


def why_unnameable(what: str, name: pl.Expr) -> pl.Expr:
    remedy = f"is no name of a model: printable, at most {MOST_NAME} characters"
    return pl.format("{} '{}' {}", pl.lit(what), value(name), pl.lit(remedy))


def count_of(text: pl.Expr) -> pl.Expr:
    """``text`` as an int32 of at least 0, or null."""
    number = text.cast(pl.Int32, strict=False)
    return pl.when(number >= 0).then(number)


def size_of(text: pl.Expr) -> pl.Expr:
    number = text.cast(pl.Int64, strict=False)
    return pl.when(number >= 0).then(number)
