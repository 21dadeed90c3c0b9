"""That what a client does with its answers is measured: whoever waits for them, and however."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from tests.helpers.serving import LIMIT_S

#: What is done with each answer, s, and what of it is to be seen at least, ns.
_WORK_S, _SEEN_NS = 0.03, 15_000_000


async def awaited(model: Model) -> None:
    await model.submit(np.zeros(1))
    time.sleep(_WORK_S)  # noqa: ASYNC251 - work, which keeps the event loop from the next answer


async def called_back(model: Model) -> None:
    future = model.submit(np.zeros(1))
    future.add_done_callback(lambda _: time.sleep(_WORK_S))
    await future


@pytest.mark.parametrize("ask", [awaited, called_back])
def test_work_on_answers_in_the_event_loop_counts_as_time_until_they_are_in_hand(
    served: Any, ask: Callable[[Model], Any]
) -> None:
    async def main(serving: Serving, model: Model) -> None:
        async with asyncio.timeout(LIMIT_S):
            while (await serving.status())["client_in_hand_ns"] < _SEEN_NS:
                await ask(model)

    served(main)
