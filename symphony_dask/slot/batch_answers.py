"""Makes the answers of a batch what can be sent: one for each request, none too large for a frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from symphony_dask.backends import BatchResult
from symphony_dask.slot.batch_inbox import Batch
from symphony_dask.wire import batch_codec
from symphony_dask.wire.connection import MAX_FRAME_BYTES

#: The largest answer, bytes; the rest of a frame is for its header.
MAX_ANSWER_BYTES = MAX_FRAME_BYTES - (1 << 24)


def no_answers(n: int, error: str = "") -> BatchResult:
    return BatchResult(memoryview(b""), np.zeros(n, np.int64), dict.fromkeys(range(n), error))


def without_too_large(result: BatchResult) -> BatchResult:
    """The answers without those that fit no frame, whose requests fail."""
    if batch_codec.blob_bytes(result.blob) <= MAX_ANSWER_BYTES:
        return result
    large = np.flatnonzero(result.sizes > MAX_ANSWER_BYTES).tolist()
    answers = batch_codec.split(result.blob, result.sizes)
    errors = {i: f"the answer has {len(answers[i])} bytes: the most is {MAX_ANSWER_BYTES}" for i in large}
    answers = [memoryview(b"") if i in errors else answer for i, answer in enumerate(answers)]
    sizes = np.array([len(answer) for answer in answers], np.int64)
    return replace(result, blob=answers, sizes=sizes, errors=result.errors | errors)


def spread(result: BatchResult, batch: Batch) -> BatchResult:
    """The answers of the requests that ran, as answers of the whole batch."""
    ran = batch.present()
    sizes = np.zeros(len(batch.sizes), np.int64)
    sizes[ran] = result.sizes
    blob = result.blob
    if isinstance(blob, list):
        answers = dict(zip(ran, batch_codec.split(blob, result.sizes), strict=True))
        blob = [answers.get(i, memoryview(b"")) for i in range(len(sizes))]
    return replace(result, blob=blob, sizes=sizes, errors={ran[i]: text for i, text in result.errors.items()})
