"""What users may mean otherwise, or would regret, is refused with what to write instead, or warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client

import autoscale
import symphony_dask
from symphony_dask.backends.emulated import Emulated
from symphony_dask.cli.main import symphony
from symphony_dask.client import declarations
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import BadInput, UnknownModel
from tests.helpers import models
from tests.helpers.cluster import Cluster
from tests.helpers.serving import QUICK

Deploy = Callable[..., Model]
ONE = np.array([1.0])


@pytest.mark.parametrize("number", [25, np.float32(0.5)])
@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("slo", lambda s, m, n: s.deploy("never", models.double, slo=n, profile=QUICK)),
        ("timeout", lambda s, m, n: s.deploy("never", models.double, slo="1s", profile=QUICK, timeout=n)),
        ("slo", lambda s, m, n: s.pipeline("never", [m], slo=n)),
        ("slo", lambda s, m, n: m.submit(ONE, slo=n)),
        ("slo", lambda s, m, n: m.map([ONE], slo=n)),
        ("slo", lambda s, m, n: m(ONE, slo=n)),
        ("slo", lambda s, m, n: s.model("refusals").submit(ONE, slo=n)),
        ("timeout", lambda s, m, n: s.rollback(m.name, timeout=n)),
        ("timeout", lambda s, m, n: s.wait_ready(timeout=n)),
        ("timeout", lambda s, m, n: s.retire(["a"], timeout=n)),
        ("timeout", lambda s, m, n: symphony_dask.as_completed([], timeout=n)),
        ("deadline", lambda s, m, n: symphony_dask.deadline(n).__enter__()),
        ("drain_deadline", lambda s, m, n: autoscale.Adaptive(None, drain_deadline=n)),
    ],
)
def test_a_duration_without_a_unit_is_refused(
    serving: Serving, pair: Model, what: str, use: Callable[..., Any], number: Any
) -> None:
    with pytest.raises(BadInput, match=rf"{what}.*write {what} with a unit, such as \"") as error:
        use(serving, pair, number)
    assert f'"{number}ms" if that is milliseconds, or "{number}s" if it is seconds' in str(error.value)


def test_a_duration_without_a_unit_is_refused_in_files_and_annotations(client: Client, pair: Model) -> None:
    with pytest.raises(BadInput, match=r"model 'net', slo: slo=25 has no unit: write slo with a unit"):
        declarations.read("models: {net: {emulated: '1,1', slo: 25}}")
    import dask

    with (
        dask.annotate(symphony={"slo": 0.5}),
        pytest.raises(BadInput, match=r"slo=0\.5 has no unit"),
    ):
        client.submit(pair, ONE, pure=False).result(30)


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Client:
    return cluster.client()


@pytest.fixture(scope="module")
def pair(serving: Serving) -> Any:
    model = serving.deploy("refusals-model", models.double, slo="60s", profile=QUICK)
    serving.pipeline("refusals", [model], slo="60s")
    yield model
    serving.undeploy("refusals")
    serving.undeploy(model.name)


# What would be regretted


def test_an_slo_that_the_network_uses_up_is_warned_of_with_figures(serving: Serving, deploy: Deploy) -> None:
    with pytest.warns(
        UserWarning, match=r"SLO 20\.1ms of model .* leaves nothing: one request alone takes 20ms, and its way"
    ):
        deploy(Emulated(1, 19), slo="20.1ms")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deploy(Emulated(1, 19), slo="10s")


def test_a_version_that_takes_other_samples_is_refused_unless_forced(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, example=np.zeros(3, np.float32))
    for other in (np.zeros(4, np.float32), np.zeros(3, np.float64), {"x": np.zeros(3, np.float32)}, b"abc"):
        with pytest.raises(
            BadInput, match=r"no sample of version '1', which serves: .* takes float32 \(3,\).*force=True"
        ):
            serving.deploy(model.name, models.double, slo="60s", profile=QUICK, example=other)
    with pytest.raises(BadInput, match=r"no sample of version '1'"):
        serving.deploy(model.name, models.double, slo="60s", profile=QUICK, example=np.zeros(4, np.float32), canary=0.1)
    assert [v["version"] for v in serving.versions(model.name)] == ["1"]
    serving.deploy(model.name, models.double, slo="60s", profile=QUICK, example=np.zeros(3, np.float32))
    serving.deploy(model.name, models.double, slo="60s", profile=QUICK, example=np.zeros(4, np.float32), force=True)
    assert model(np.ones(4, np.float32)).tolist() == [2.0] * 4


def test_a_model_that_pipelines_ask_is_not_undeployed_unless_forced(serving: Serving, deploy: Deploy) -> None:
    model, other = deploy(models.double, profile=QUICK), deploy(models.double, profile=QUICK)
    serving.pipeline("asks", [other, symphony_dask.Ensemble([[model], other])], slo="60s")
    serving.pipeline("asks-too", [model], slo="60s")
    with pytest.raises(
        BadInput, match=r"is a stage of the pipelines 'asks', 'asks-too': undeploy these first, or pass"
    ):
        serving.undeploy(model.name)
    assert model(ONE).tolist() == [2.0]
    serving.undeploy("asks-too")
    serving.undeploy(model.name, force=True)
    with pytest.raises(UnknownModel):
        serving.find(model.name)
    serving.undeploy("asks")


def test_applying_a_file_forces_only_if_asked_to(cluster: Cluster, serving: Serving, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"

    def apply(text: str, *options: str) -> tuple[int, str]:
        file.write_text(text)
        found = CliRunner().invoke(symphony, ["apply", str(file), "--scheduler", cluster.address, "--yes", *options])
        return found.exit_code, found.output

    declared = (
        "models: {forced: {model: 'tests.helpers.models:double', slo: 60s, profile: '0.1,0.5', example: 'float32:%d'}}"
    )
    assert apply(declared % 3)[0] == 0
    refused = apply(declared % 4)
    assert refused[0] == 1
    assert "symphony apply --force" in refused[1]
    assert apply(declared % 4, "--force")[0] == 0
    serving.pipeline("asks-forced", ["forced"], slo="60s")
    assert apply("models: {}")[0] == 1
    assert apply("models: {}", "--force")[0] == 0
    serving.undeploy("asks-forced")
