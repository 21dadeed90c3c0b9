"""Declared models: what a file may say, what it changes, and that deployments survive the scheduler."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from symphony_dask.cli.commands.apply import apply
from symphony_dask.client.declarations import Action, Running, options_of, plan, read
from symphony_dask.client.serving import Serving
from symphony_dask.control import state_file
from symphony_dask.errors import BadInput, DeploymentError
from tests.helpers import models
from tests.helpers.cluster import Cluster, wait_until

X = np.array([1.0])
QUICK = "0.1,0.5"
DOUBLE = {"model": "tests.helpers.models:double", "slo": 60 * 10**9, "profile": QUICK}
FILE = f"""
models:
  net:
    model: tests.helpers.models:double
    slo: 60s
    profile: {QUICK}
  emulated:
    emulated: 0.1,1
    slo: 1s
    memory: 1KiB
    pinned: true
"""

# What a file says


def test_a_file_is_read_into_comparable_values() -> None:
    assert read(FILE) == {
        "net": DOUBLE,
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
        ("models: {net: {emulated: '1,1', slo: 1s, canary: 2}}", "canary: canary=2"),
        ("models: {net: {emulated: '1,1', slo: 1s, max_batch: 0}}", "max_batch: 0"),
        ("models: {net: {model: 'a:b', slo: 1s, example: 'float99:3'}}", "example: example 'float99:3'"),
        ("models:\n  net: {emulated: '1,1', slo: 1s}\n  net: {emulated: '1,1', slo: 1s}", "'net' is there twice"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        read(text)


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
    old = {**DOUBLE, "slo": 10**9}
    running = {
        "same": Running("1", DOUBLE),
        "other": Running("1", old),
        "gone": Running("3", DOUBLE),
        "programs": Running("1", None),
    }
    wanted = {"new": DOUBLE, "same": DOUBLE, "other": DOUBLE}
    assert plan(wanted, running) == [
        Action("deploy", "new", {key: (None, value) for key, value in DOUBLE.items()}),
        Action("keep", "same"),
        Action("update", "other", {"slo": (10**9, 60 * 10**9)}),
        Action("undeploy", "gone"),
    ]
    assert Action("update", "other", {"slo": (10**9, 6 * 10**10)}).lines() == ["~ update other", "    slo: 1s -> 60s"]


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        ({**DOUBLE, "slo": 7, "canary": 0.1}, "keep"),
        ({**DOUBLE, "slo": 7, "canary": 0.5}, "share"),
        ({**DOUBLE, "slo": 7}, "promote"),
        (DOUBLE, "rollback"),
        ({**DOUBLE, "slo": 8, "canary": 0.1}, "update"),
    ],
)
def test_a_canary_is_changed_promoted_or_taken_away(wanted: dict[str, Any], what: str) -> None:
    running = Running("1", DOUBLE, "2", {**DOUBLE, "slo": 7, "canary": 0.1}, 0.1)
    assert [action.what for action in plan({"m": wanted}, {"m": running})] == [what]


def test_what_cannot_be_done_is_refused_before_anything_is() -> None:
    with pytest.raises(BadInput, match="its first version cannot be a canary"):
        plan({"m": {**DOUBLE, "canary": 0.1}}, {})
    with pytest.raises(BadInput, match="is to change, and version '1' of it serves already"):
        plan({"m": {**DOUBLE, "version": "1"}}, {"m": Running("1", {**DOUBLE, "version": "1", "slo": 7})})


# On a cluster


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(apply, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serving.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def undeployed(serving: Serving) -> Iterator[None]:
    yield
    for name in {"net", "emulated"} & serving.status()["models"].keys():
        serving.undeploy(name)


@pytest.mark.usefixtures("undeployed")
def test_a_file_is_applied_once_and_changes_are_applied(cluster: Cluster, serving: Serving, file: Path) -> None:
    where = ("--scheduler", cluster.address)
    shown = run(file, *where, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[:2] == ["+ deploy net", "    model: tests.helpers.models:double"]
    assert "net" not in serving.status()["models"]
    first = run(file, *where, "--yes", "--json")
    assert first.exit_code == 0, first.output
    assert [a["what"] for a in json.loads(first.stdout)["actions"]] == ["deploy", "deploy"]
    assert serving.model("net")(X).tolist() == [2.0]
    again = run(file, *where)
    assert again.stdout.splitlines() == ["= keep net", "= keep emulated", "nothing to do"]
    file.write_text(FILE.replace("slo: 60s", "slo: 59s").split("  emulated")[0])
    changed = run(file, *where, "--yes")
    assert changed.stdout.splitlines() == ["~ update net", "    slo: 60s -> 59s", "- undeploy emulated"]
    assert [(m, v["version"]) for m, v in serving.status()["models"].items() if m == "net"] == [("net", "2")]
    assert "emulated" not in serving.status()["models"]
    refused = run(file, *where, "--json")
    assert refused.exit_code == 1
    assert "add --yes or --dry-run" in refused.stderr


def test_torchscript_and_exported_files_are_served(cluster: Cluster, serving: Serving, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    module, x = models.linear(), np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    batch = torch.zeros(2, 4)
    torch.jit.save(torch.jit.trace(module, batch), tmp_path / "net.pt")
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (batch,), dynamic_shapes=dynamic), tmp_path / "net.pt2")
    file = tmp_path / "serving.yaml"
    common = "slo: 60s, profile: '0.1,0.5', example: 'float32:4'"
    kinds = f"torchscript: {tmp_path}/net.pt", f"exported: {tmp_path}/net.pt2"
    file.write_text(f"models: {{scripted: {{{kinds[0]}, {common}}}, exported: {{{kinds[1]}, {common}}}}}")
    applied = run(file, "--scheduler", cluster.address, "--yes")
    assert applied.exit_code == 0, applied.output
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)[None])[0].numpy()
    for name in ("scripted", "exported"):
        np.testing.assert_allclose(serving.model(name)(x), expected, rtol=1e-5)
        serving.undeploy(name)


def test_a_model_that_does_not_load_is_reported_and_nothing_else_is_lost(
    cluster: Cluster, serving: Serving, file: Path
) -> None:
    file.write_text("models: {bad: {model: 'tests.helpers.models:load_nothing', slo: 1s, profile: '1,1'}}")
    failed = run(file, "--scheduler", cluster.address, "--yes")
    assert failed.exit_code == 1
    assert "no weights here" in failed.stderr
    assert "bad" not in serving.status()["models"]


# After the scheduler


def half(x: Any) -> Any:
    return x / 2


def test_a_killed_scheduler_serves_again_what_was_deployed(tmp_path: Path) -> None:
    state = tmp_path / "state" / "symphony"
    settings = {"DASK_SYMPHONY__POLICY": "eager", "DASK_SYMPHONY__STATE": str(state)}
    with Cluster(1, settings=settings) as cluster:
        with Serving(cluster.client()) as serving:
            serving.deploy("sent", lambda batch: batch * 3, slo="60s", profile=QUICK)
            serving.deploy("torch", models.double, slo="60s", example=X, pinned=True)
            serving.deploy("torch", models.constant(7.0), slo="50s", example=X)
            with pytest.raises(DeploymentError):
                serving.deploy("bad", models.load_nothing, slo="60s", profile=QUICK)
            serving.deploy("gone", models.double, slo="60s", profile=QUICK)
            serving.undeploy("gone")
            serving.pipeline("chain", ["sent", half, "sent"], slo="60s")
        assert os.stat(state).st_mode & 0o777 == 0o600
        cluster.restart_scheduler()
        cluster.add_worker()
        with Serving(cluster.client()) as serving:
            wait_until(lambda: any(w.get("serving") for w in serving.status()["workers"].values()), "a worker", 60)
            assert sorted(serving.status()["models"]) == ["sent", "torch"]
            assert serving.model("sent")(X).tolist() == [3.0]
            again = serving.model("torch")
            assert (again(X), again.slo_ns, again.version) == (7.0, 50 * 10**9, "2")
            assert serving.rollback("torch")(X).tolist() == [2.0]
            assert serving.model("chain")(X).tolist() == [4.5]


def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"not a state")
    with pytest.raises(BadInput, match=r"symphony.state .* cannot be read .*move it away"):
        state_file.read(str(path))
    assert state_file.read(str(tmp_path / "none")) == ([], 0, {})


def test_writing_the_state_replaces_it_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state_file.write(str(path), b"one")
    state_file.write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
