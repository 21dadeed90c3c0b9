"""Runs one batch: payloads in, payloads or tracebacks out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from symphony_dask.text import error_text
from symphony_dask.wire import array_codec, batch_codec, codec, composite

#: What serves a model: called with the n samples of a batch, it returns n results in the same order (an array or tensor
#: of shape (n, ...), or a list, in which an exception fails the request that it stands for). The samples come as one
#: array or CPU tensor of shape (n, *sample shape), or as a list where they are neither (``BatchRunner.takes``).
BatchCallable = Callable[[Any], Any]


@dataclass(frozen=True)
class BatchResult:
    """The answers to a batch of n samples.

    blob: the encoded answers in the order of the samples, joined or a list.
    sizes: (n,) length of each answer in bytes, 0 for a sample that failed.
    errors: traceback by index of each sample that failed, as ``text.error_text`` has it.
    input_ns, output_ns: what the batch took beside the model: to decode and stack samples and have them on the device,
        and to encode answers. 0 where a runner does not measure it.
    late: of ``errors``, those of Dask tasks that did not come in time for the batch; the model did not see them.
    """

    blob: batch_codec.Blob
    sizes: npt.NDArray[np.int64]
    errors: dict[int, str] = field(default_factory=dict)
    input_ns: int = 0
    output_ns: int = 0
    late: frozenset[int] = frozenset()


class Runner(Protocol):
    """Runs batches of one model, in one thread at a time."""

    def run(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        """The answers to the payloads in ``blob``, joined or a list, whose lengths in bytes are ``sizes`` (n,).

        What the model raises is returned, not raised. Raises ``BadInput`` if the sizes do not add up to the blob.
        """
        ...


@runtime_checkable
class Staging(Runner, Protocol):
    """A runner that can do a part of a batch ahead, in another thread, while the batch before runs."""

    def stage(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> Callable[[], BatchResult]:
        """Decode and stack the samples, and have them on the device; what is returned runs them, as ``run`` does."""
        ...


@dataclass(frozen=True)
class BatchRunner:
    """Runs ``call`` on batches.

    Samples that stack share one call. A batch of several shapes or dtypes is run as one call for each of them, and if a
    call raises, only its own samples fail. A ``call`` with a method ``stage`` has stacked samples passed to that first,
    and is called with what it returns.

    takes: what samples are stacked: "arrays" and tensors; "inputs", which are also dicts, tuples and lists of these,
        stacked entry by entry (``inputs.stack``); or none, ``call`` takes a "list" of samples.
    """

    call: BatchCallable
    takes: Literal["arrays", "inputs", "list"] = "arrays"

    @property
    def batch_sizes(self) -> Sequence[int]:
        """The sizes to which batches are padded, rising; empty if they are not."""
        return getattr(self.call, "batch_sizes", ())

    def run(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> BatchResult:
        """See ``Runner.run``."""
        return self.stage(blob, sizes)()

    def stage(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> Callable[[], BatchResult]:
        """See ``Staging.stage``."""
        n = len(sizes)
        watch = _Watch()
        try:
            samples = self._stack(blob, sizes)
            if samples is not None and (stage := getattr(self.call, "stage", None)) is not None:
                samples = stage(samples)
        except Exception as error:
            result = _all_failed(n, error)
            return lambda: result
        watch.lap("input")
        if samples is None:
            return lambda: self._run_groups(batch_codec.split(blob, sizes), watch)
        return lambda: self._run_stacked(samples, n, watch)

    def _stack(self, blob: batch_codec.Blob, sizes: npt.NDArray[np.int64]) -> Any | None:
        if self.takes == "list":
            return None
        samples = batch_codec.stack(blob, sizes)
        return composite.stack(blob, sizes) if samples is None and self.takes == "inputs" else samples

    def _run_stacked(self, samples: object, n: int, watch: _Watch) -> BatchResult:
        watch.begin()
        try:
            outputs = self.call(samples)
            watch.lap("model")
            result = encode_answers(outputs, n)
            watch.lap("output")
            return watch.timed(result)
        except Exception as error:
            return _all_failed(n, error)

    def _run_groups(self, payloads: list[memoryview], watch: _Watch) -> BatchResult:
        groups: dict[Any, list[int]] = {}
        watch.begin()
        for i, payload in enumerate(payloads):
            groups.setdefault(self._group_of(payload), []).append(i)

        answers: list[memoryview] = [memoryview(b"")] * len(payloads)
        errors: dict[int, str] = {}
        for members in groups.values():
            try:
                samples = self._join([payloads[i] for i in members])
                if samples is None:
                    members, samples = _decode_each(payloads, members, errors)
                watch.lap("input")
                if members:
                    outputs = self.call(samples)
                    watch.lap("model")
                    result = encode_answers(outputs, len(members))
                    for i, answer in zip(members, batch_codec.split(result.blob, result.sizes), strict=True):
                        answers[i] = answer
                    errors |= {members[k]: text for k, text in result.errors.items()}
                    watch.lap("output")
            except Exception as error:
                errors |= dict.fromkeys(members, error_text(error))
        return watch.timed(BatchResult(answers, np.array([len(a) for a in answers], np.int64), errors))

    def _group_of(self, payload: memoryview) -> Any:
        """Equal for samples that share a call."""
        if self.takes == "list":
            return None
        header = array_codec.signature(payload)
        if header is not None:
            # The size is part of it so that a payload cut short does not keep the whole ones from being stacked.
            return header, len(payload)
        return composite.group_of(payload) if self.takes == "inputs" else None

    def _join(self, group: list[memoryview]) -> Any | None:
        """The samples of a group stacked; None if they do not stack."""
        if self.takes == "inputs" and composite.group_of(group[0]) is not None:
            return composite.join(group)
        return self._stack(group, np.array([len(payload) for payload in group], np.int64))


class _Watch:
    """Where the time of a batch goes: each ``lap`` adds what passed since the one before to a part."""

    def __init__(self) -> None:
        self._ns = {"input": 0, "model": 0, "output": 0}
        self.begin()

    def begin(self) -> None:
        """What passed before now is of no part: a batch that was staged waits for its turn."""
        self._at_ns = time.perf_counter_ns()

    def lap(self, part: str) -> None:
        now_ns = time.perf_counter_ns()
        self._ns[part] += now_ns - self._at_ns
        self._at_ns = now_ns

    def timed(self, result: BatchResult) -> BatchResult:
        return replace(result, input_ns=self._ns["input"], output_ns=self._ns["output"])


def encode_answers(outputs: Any, n: int) -> BatchResult:
    """What a model returned for n samples, encoded. An exception among the results, and a result that cannot be sent,
    fails its own sample.

    Raises ``ValueError`` unless there are n results, and ``BadInput`` for an array or tensor that cannot be sent.
    """
    batch_codec.check_count(outputs, n)
    if batch_codec.is_uniform(outputs):
        return BatchResult(*batch_codec.encode_batch(outputs, n))
    answers: list[memoryview] = []
    errors: dict[int, str] = {}
    for i, output in enumerate(outputs):
        try:
            if isinstance(output, BaseException):
                errors[i] = error_text(output)
            answers.append(memoryview(b"" if i in errors else codec.encode_payload(output)))
        except Exception as error:
            errors[i] = error_text(error)
            answers.append(memoryview(b""))
    if len(answers) != n:
        raise ValueError(f"model returned {len(answers)} results, though their len() is {n}")
    return BatchResult(answers, np.array([len(a) for a in answers], np.int64), errors)


def _all_failed(n: int, error: BaseException) -> BatchResult:
    return BatchResult(memoryview(b""), np.zeros(n, np.int64), dict.fromkeys(range(n), error_text(error)))


def _decode_each(payloads: list[memoryview], members: list[int], errors: dict[int, str]) -> tuple[list[int], list[Any]]:
    """The members that can be decoded, and their samples; the traceback of each other one goes into ``errors``."""
    decoded: dict[int, Any] = {}
    for i in members:
        try:
            decoded[i] = codec.decode(payloads[i])
        except Exception as error:
            errors[i] = error_text(error)
    return list(decoded), list(decoded.values())
