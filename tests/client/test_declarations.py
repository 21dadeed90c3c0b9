"""Declaration files: what one may say, and what is to be done where other models serve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symphony_dask.client.declarations import Action, Running, options_of, plan, read
from symphony_dask.errors import BadInput
from tests.helpers.models import DECLARED, DECLARED_DOUBLE


def test_a_file_is_read_into_comparable_values() -> None:
    assert read(DECLARED) == {
        "net": DECLARED_DOUBLE,
        "emulated": {"emulated": "0.1,1", "slo": 10**9, "memory": 1024, "pinned": True},
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("models: [", "this is no YAML"),
        ("net: {}", 'has no "models"'),
        ("models: {}\nmodel: {}", r"unknown key 'model': did you mean 'models'\?"),
        ("models: {net: 7}", "model 'net' is 7"),
        ("models: {net: {slow: 25ms}}", r"model 'net' has an unknown key 'slow': did you mean 'slo'\?"),
        ("models: {net: {zzz: 1}}", "unknown key 'zzz': it may have model, "),
        ("models: {net: {slo: 25ms}}", "to say what it is: give one of model, torchscript, exported, emulated"),
        ("models: {net: {model: 'a:b', emulated: '1,1'}}", r"\['model', 'emulated'\] to say what it is"),
        ("models: {net: {model: nets, slo: 1s, profile: '1,1'}}", "model 'net', model: 'nets' is no import path"),
        ("models: {net: {model: 'a:b'}}", "has no slo"),
        ("models: {net: {model: 'a:b', slo: 25ms}}", "neither profile nor example"),
        ("models: {net: {emulated: '1,1', slo: fast}}", "model 'net', slo: slo 'fast' cannot be read"),
        ("models: {net: {emulated: '1,1', slo: 1s, pinned: 1}}", "pinned: 1: write true or false"),
        ("models: {net: {emulated: '1,1', slo: 1s, prefer: speed}}", "prefer: 'speed': write latency or gpus"),
        ("models: {net: {emulated: '1,1', slo: 1s, max_delay: soon}}", "max_delay: max_delay 'soon' cannot be read"),
        ("models: {net: {emulated: '1,1', slo: 1s, canary: 2}}", "canary: canary=2"),
        ("models: {net: {emulated: '1,1', slo: 1s, max_batch: 0}}", "max_batch: 0"),
        ("models: {net: {model: 'a:b', slo: 1s, example: 'float99:3'}}", "example: example 'float99:3'"),
        ("models:\n  net: {emulated: '1,1', slo: 1s}\n  net: {emulated: '1,1', slo: 1s}", "'net' is there twice"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        read(text)


def test_how_batches_are_formed_is_declared() -> None:
    net = read("models: {net: {emulated: '1,1', slo: 1s, prefer: gpus, max_delay: 5ms, policy: timeout(0.3)}}")["net"]
    assert net["max_delay"] == 5_000_000
    options = options_of(net)
    assert (options["prefer"], options["max_delay"], options["policy"]) == ("gpus", 0.005, "timeout(0.3)")


def test_an_example_of_several_inputs_is_declared_by_names_or_as_a_list() -> None:
    text = "models: {{net: {{model: 'a:b', slo: 1s, example: {0}}}}}"
    named = options_of(read(text.format("{ids: 'int64:3', mask: 'bool:3'}"))["net"])["example"]
    assert {name: (entry.dtype, entry.shape) for name, entry in named.items()} == {
        "ids": (np.int64, (3,)),
        "mask": (np.bool_, (3,)),
    }
    first, second = options_of(read(text.format("['float32:2,2', 'int64']"))["net"])["example"]
    assert (first.shape, second.shape) == ((2, 2), ())
    for wrong in ("{ids: 3}", "{ids: {left: 'int64:3'}}", "[]", "{3: 'int64:3'}", "{ids: 'int64:x'}"):
        with pytest.raises(BadInput, match=r"model 'net', example: example .* cannot be read"):
            read(text.format(wrong))


def test_what_is_to_be_done_follows_from_what_serves() -> None:
    old = {**DECLARED_DOUBLE, "slo": 10**9}
    running = {
        "same": Running("1", DECLARED_DOUBLE),
        "other": Running("1", old),
        "gone": Running("3", DECLARED_DOUBLE),
        "programs": Running("1", None),
    }
    wanted = {"new": DECLARED_DOUBLE, "same": DECLARED_DOUBLE, "other": DECLARED_DOUBLE}
    assert plan(wanted, running) == [
        Action("deploy", "new", {key: (None, value) for key, value in DECLARED_DOUBLE.items()}),
        Action("keep", "same"),
        Action("update", "other", {"slo": (10**9, 60 * 10**9)}),
        Action("undeploy", "gone"),
    ]
    assert Action("update", "other", {"slo": (10**9, 6 * 10**10)}).lines() == ["~ update other", "    slo: 1s -> 60s"]


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        ({**DECLARED_DOUBLE, "slo": 7, "canary": 0.1}, "keep"),
        ({**DECLARED_DOUBLE, "slo": 7, "canary": 0.5}, "share"),
        ({**DECLARED_DOUBLE, "slo": 7}, "promote"),
        (DECLARED_DOUBLE, "rollback"),
        ({**DECLARED_DOUBLE, "slo": 8, "canary": 0.1}, "update"),
    ],
)
def test_a_canary_is_changed_promoted_or_taken_away(wanted: dict[str, Any], what: str) -> None:
    running = Running("1", DECLARED_DOUBLE, "2", {**DECLARED_DOUBLE, "slo": 7, "canary": 0.1}, 0.1)
    assert [action.what for action in plan({"m": wanted}, {"m": running})] == [what]


def test_what_cannot_be_done_is_refused_before_anything_is() -> None:
    with pytest.raises(BadInput, match="its first version cannot be a canary"):
        plan({"m": {**DECLARED_DOUBLE, "canary": 0.1}}, {})
    with pytest.raises(BadInput, match="is to change, and version '1' of it serves already"):
        plan(
            {"m": {**DECLARED_DOUBLE, "version": "1"}},
            {"m": Running("1", {**DECLARED_DOUBLE, "version": "1", "slo": 7})},
        )
