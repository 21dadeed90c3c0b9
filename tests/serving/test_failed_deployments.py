"""Deployments and samples that are refused or fail, and that others go on."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import pytest

from symphony_dask.backends.emulated import Emulated
from symphony_dask.client import model as model_module
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.errors import (
    BadInput,
    DeploymentError,
    UnknownModel,
)
from tests.helpers import models
from tests.helpers.models import Gate
from tests.helpers.serving import LIMIT_S, PLACES, QUICK, Deploy, outcomes


def test_a_slo_that_cannot_be_read_is_refused(serving: Serving, deploy: Deploy) -> None:
    with pytest.raises(BadInput, match="slo '25 parsecs' cannot be read"):
        serving.deploy("refused", Emulated(1, 1), slo="25 parsecs")
    with pytest.raises(BadInput, match="parsecs"):
        deploy(Emulated(0.1, 1)).submit(b"", slo="25 parsecs")


def test_a_slo_that_one_request_alone_cannot_meet_is_refused(serving: Serving) -> None:
    with pytest.raises(BadInput, match=r"SLO 5ms of model 'refused' cannot be met: one request alone takes 12ms"):
        serving.deploy("refused", Emulated(2, 10), slo="5ms")
    assert not serving.status()["loading"]


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (Emulated(1, 1), {"max_batch": 0}, "max_batch=0"),
        (Emulated(1, 1), {"queue_limit": 1.5}, "queue_limit=1.5"),
        (Emulated(1, 1), {"timeout": "soon"}, "timeout 'soon'"),
        (models.double, {}, "neither profile nor example"),
        (models.double, {"profile": "fast"}, "profile 'fast' cannot be read"),
        (models.double, {"example": object()}, "object"),
        (17, {"profile": QUICK}, "cannot serve a int"),
    ],
)
def test_a_deployment_that_makes_no_sense_is_refused(
    serving: Serving, model: Any, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(BadInput, match=match):
        serving.deploy("refused", model, slo="1s", **options)


def test_a_sample_of_another_shape_is_refused_when_it_is_submitted(deploy: Deploy) -> None:
    model = deploy(models.double, example=np.zeros((3, 4), np.float32), profile=QUICK)
    with pytest.raises(BadInput, match=r"takes float32 \(3, 4\); got float64 \(2,\)"):
        model.submit(np.zeros(2))


def test_a_sample_too_large_to_send_is_refused(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "MAX_SAMPLE_BYTES", 1000)
    with pytest.raises(BadInput, match=r"a sample of 1001 bytes.*the most is 1000"):
        deploy(Emulated(0.1, 1)).submit(b"x" * 1000)


def test_a_model_that_is_not_deployed_is_unknown(serving: Serving) -> None:
    with pytest.raises(UnknownModel, match="'nobody'"):
        serving.model("nobody")
    with pytest.raises(UnknownModel, match="'nobody'"):
        serving.undeploy("nobody")


def test_a_loader_that_raises_fails_the_deployment_with_its_traceback(serving: Serving) -> None:
    with pytest.raises(DeploymentError, match=r"(?s)in load_nothing.*FileNotFoundError: no weights here"):
        serving.deploy("refused", models.load_nothing, slo="1s", profile=QUICK)


def test_a_module_that_does_not_take_its_example_fails_the_deployment(serving: Serving) -> None:
    with pytest.raises(DeploymentError, match=r"(?s)failed on its example, float32 \(5,\).*mat1 and mat2"):
        serving.deploy("refused", models.linear(), slo="1s", example=np.zeros(5, np.float32))


def test_a_deployment_that_fails_does_not_disturb_what_is_served(
    serving: Serving, held: tuple[Model, list[Any]], gate: Gate
) -> None:
    model, futures = held
    with pytest.raises(DeploymentError):  # while the slots' threads wait for the gate
        serving.deploy("refused", models.load_nothing, slo="1s", profile=QUICK)
    gate.open()
    assert model.submit(np.array([1.0])).result(LIMIT_S).tolist() == [2.0]
    assert [f.result(LIMIT_S).tolist() for f in futures] == [[2.0 * i] for i in range(PLACES)]
    assert outcomes(serving, model) == {"ok": PLACES + 1}
    assert [w["serving"] for w in serving.status()["workers"].values()] == [1, 1]


def test_deployments_at_once_do_not_fail_each_other(serving: Serving, deploy: Deploy) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        bad = pool.submit(serving.deploy, "refused", models.load_nothing, slo="1s", profile=QUICK)
        good = pool.submit(deploy, models.double, profile=QUICK)
        assert good.result(LIMIT_S)(np.array([1.0])).tolist() == [2.0]
        with pytest.raises(DeploymentError):
            bad.result(LIMIT_S)
