"""Batches as the worker sees them, for the tests of the backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from symphony_dask.backends import BatchResult, Runner
from symphony_dask.wire import batch_codec, codec


def run(runner: Runner, *samples: Any) -> BatchResult:
    """The result of ``runner`` for a batch of ``samples``, of which bytes are taken as payloads already encoded."""
    payloads = [x if isinstance(x, bytes) else codec.encode(x) for x in samples]
    return runner.run(memoryview(b"".join(payloads)), np.array([len(p) for p in payloads], np.int64))


def answers(result: BatchResult) -> list[Any]:
    """The decoded answers, with "failed" for the samples that failed."""
    payloads = batch_codec.split(result.blob, result.sizes)
    return ["failed" if i in result.errors else codec.decode(payload) for i, payload in enumerate(payloads)]
