"""``symphony apply`` on a cluster: it shows what a file changes, and does that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from symphony_dask.cli.commands.apply import apply
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.models import DECLARED

X = np.array([1.0])


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(apply, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serving.yaml"
    path.write_text(DECLARED)
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
    file.write_text(DECLARED.replace("slo: 60s", "slo: 59s").split("  emulated")[0])
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
