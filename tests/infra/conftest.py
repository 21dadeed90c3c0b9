from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.aws.account import Aws, moto
from tests.helpers.aws.imds import Instance, instance


@pytest.fixture
def aws() -> Iterator[Aws]:
    with moto() as aws:
        yield aws


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """The metadata service of this "instance", for this process and those it starts."""
    with instance() as served:
        monkeypatch.setenv("SYMPHONY_IMDS", served.url)
        yield served
