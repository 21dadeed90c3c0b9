"""Checks run.json, as far as this package reads it: whether each key holds what it should."""

from __future__ import annotations

from datetime import datetime

from symphony_dask.engine.latency_profile import LONGEST_NS, LatencyProfile

#: The latest time of an engine, ns.
_MOST_NS = 1 << 61


def wrong_info(info: object) -> str | None:
    """What is wrong with a run's description, in a clause; None where nothing is. Keys of others are their own."""
    if not isinstance(info, dict):
        return "it is no object"
    for key, kind in (("policy", str), ("label", str), ("clock", str), ("started_at", str), ("closed", bool)):
        if info.get(key) is not None and not isinstance(info[key], kind):
            return f"{key} is {info[key]!r:.60}"
    if not _is_time(info.get("started_at")):
        return f"started_at is {info['started_at']!r:.60}"
    for key, most in (("engine_clock_ns", _MOST_NS), ("lost_rows", _MOST_NS), ("bad_rows", _MOST_NS)):
        if not _is_count(info.get(key, 0), 0, most):
            return f"{key} is {info[key]!r:.60}"
    counts = info.get("counts")
    if counts is not None and not (
        isinstance(counts, dict) and all(_is_count(n, 0, _MOST_NS) for n in counts.values())
    ):
        return f"counts is {counts!r:.60}"
    models = info.get("models", [])
    if not isinstance(models, list):
        return f"models is {models!r:.60}"
    return next((text for text in map(_wrong_model, models) if text), None)


def _wrong_model(model: object) -> str | None:
    if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not _encodable(model["name"]):
        return f"a model is {model!r:.60}"
    name = f"of model {model['name']!r:.60}"
    if not _is_count(model.get("slo_ns", 1), 1, LONGEST_NS):
        return f"slo_ns {name} is {model['slo_ns']!r:.60}"
    profiles = model.get("profiles", {})
    if not isinstance(profiles, dict):
        return f"profiles {name} is {profiles!r:.60}"
    for gpu_class, profile in profiles.items():
        try:
            LatencyProfile.from_dict(profile)
        except ValueError as error:
            return f"the profile {name} on {gpu_class!r:.60} is none ({error})"
    return None


def _is_time(text: str | None) -> bool:
    try:
        return text is None or bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _encodable(text: str) -> bool:
    """Whether a text has no half of a pair of surrogates, which no file and no table takes."""
    return text.isascii() or text.encode(errors="replace") == text.encode(errors="ignore")


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
