"""What a notebook shows of a cluster, a model and a future."""

from __future__ import annotations

import numpy as np

from symphony_dask.client.future import InferenceFuture
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers import models
from tests.helpers.sent_requests import answered, refuse
from tests.helpers.serving import LIMIT_S, QUICK, Deploy


def test_a_notebook_shows_models_with_their_outcomes(serving: Serving, deploy: Deploy) -> None:
    model = deploy(models.double, profile=QUICK, slo="250ms")
    assert model.submit(np.array([1.0])).result(LIMIT_S).tolist() == [2.0]
    shown = serving._repr_html_()
    assert "2 of 2 serve" in shown
    row = shown[shown.index(model.name) :].split("</tr>")[0]
    assert "250ms" in row
    assert "ok 1" in row


def test_a_notebook_shows_a_cluster_that_does_not_answer() -> None:
    from symphony_dask.client.notebook import serving_html

    assert "unknown" in serving_html("tcp://127.0.0.1:1", ["<a>"], None)
    assert "&lt;a&gt;" in serving_html("tcp://127.0.0.1:1", ["<a>"], None)


def test_a_notebook_shows_the_latency_of_a_model(model: Model) -> None:
    assert "cpu: 6ms, up to 8 in 13ms" in model._repr_html_()


def test_a_notebook_shows_what_a_future_has() -> None:
    assert InferenceFuture(3)._repr_html_() == "&lt;InferenceFuture 3: pending&gt;"
    assert "<pre>&#x27;&lt;b&gt;&#x27;</pre>" in answered(3, "<b>")._repr_html_()
    failed = InferenceFuture(3)
    refuse(failed)
    assert "<pre>Overloaded: full</pre>" in failed._repr_html_()
    assert answered(3, "x" * 1000)._repr_html_().count("x") < 600
