"""Fixtures of the tests of serving."""

from __future__ import annotations

from typing import Any

import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.models import Gate
from tests.helpers.serving import QUICK, Deploy, occupy


@pytest.fixture
def held(serving: Serving, deploy: Deploy, gate: Gate) -> tuple[Model, list[Any]]:
    """A model of one request a batch that answers once the gate opens, and its requests in every place."""
    model = deploy(gate.model(), profile=QUICK, max_batch=1)
    return model, occupy(serving, model)
