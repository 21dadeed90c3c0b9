"""Runs PyTorch modules as callables on a batch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from symphony_dask.errors import BadInput
from symphony_dask.wire import codec
from symphony_dask.wire import composite as inputs

if TYPE_CHECKING:
    import numpy.typing as npt

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


class TorchModel:
    """Calls ``module`` on batches, in eval mode and inference mode.

    device: such as "cuda:0"; by default "cuda" if there is one, else "cpu". The module is moved there for good.
    optimize: None; "compile" (``torch.compile``); or "cuda-graphs", a captured graph replayed for each batch. Either
        way batches are padded with zeros to ``batch_sizes``, each of which is compiled or captured when it first comes,
        and the module must treat the samples of a batch independently of each other.
    max_batch: the largest of ``batch_sizes``; larger batches run as they are.
    collate: what makes a batch of a list of samples. Else they are arrays or tensors, and the batch is these stacked;
        or dicts of arrays, each entry of which is stacked and passed to the module by its name; or tuples or lists of
        arrays, whose entries are passed by position.

    Samples and results cross between host and device once per batch, on CUDA through pinned memory; ``stage`` sends
    samples ahead, on a stream of its own. Results are of the samples' kind, CPU tensors if there are tensors in a
    sample, else numpy arrays (bfloat16 and float8 as float32). A tuple, list or mapping of tensors of shape (n, ...),
    nested or not, becomes n tuples, lists or dicts of their rows. A list of n results in which an exception stands for
    some is taken as it is.

    Raises ``BadInput`` for CUDA graphs on another device.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: str | None = None,
        optimize: str | None = None,
        max_batch: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.module = module.to(self.device).eval()
        self.batch_sizes: list[int] = []
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._collate = collate
        self._run: Callable[[Any], Any] = partial(_call, self.module)
        if optimize is not None:
            self.batch_sizes = padded_sizes(max_batch)
        if optimize == "cuda-graphs":
            if self.device.type != "cuda":
                raise BadInput(
                    f'optimize="cuda-graphs" needs a CUDA device; the model is on {self.device}: leave it out'
                )
            self._run = _Graphs(self.module)
        elif optimize == "compile":
            # Beyond its limit of variants torch.compile silently runs the module uncompiled.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 8 + len(self.batch_sizes))
            self._run = partial(_call, torch.compile(self.module, dynamic=False))

    @property
    def memory_bytes(self) -> int:
        """Parameters and buffers; on CUDA no less than what the process has taken on the device since, at its peak."""
        held = [*self.module.parameters(), *self.module.buffers()]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in held)
        if self.device.type != "cuda":
            return weights
        return max(weights, torch.cuda.max_memory_allocated(self.device) - self._before)

    def stage(self, samples: Any) -> Any:
        """What to call with in place of ``samples``: they are then on the device, or on their way to it."""
        if self._copies is None or isinstance(samples, list):
            return samples
        with torch.cuda.stream(self._copies):
            batch = _each(samples, lambda entry: _tensor(entry).pin_memory().to(self.device, non_blocking=True))
            return _Staged(batch, self._copies.record_event(), not _holds_tensor(samples))

    def __call__(self, samples: Any) -> Any:
        """The n results for n samples, which are stacked (``inputs.stack``), what ``stage`` made of that, or a list.

        Raises ``BadInput`` for a list unless there is a ``collate``, and ``ValueError`` if an output has not n rows.
        """
        if isinstance(samples, _Staged):
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(samples.copied)
            _each(samples.batch, lambda entry: entry.record_stream(stream))
            return self._outputs(samples.batch, samples.to_numpy)
        if not isinstance(samples, list):
            batch = _each(samples, lambda entry: _tensor(entry).to(self.device))
            return self._outputs(batch, not _holds_tensor(samples))
        if self._collate is None:
            raise BadInput(inputs.obstacle(codec.encode(samples[0])))
        batch = _to_device(self._collate(samples), self.device)
        with torch.inference_mode():
            to_numpy = [not _holds_tensor(sample) for sample in samples]
            return self._answers(self._run(batch), len(samples), to_numpy)

    def _outputs(self, batch: Any, to_numpy: bool) -> Any:
        n = len(_entries(batch)[0])
        size = next((size for size in self.batch_sizes if size >= n), n)
        with torch.inference_mode():
            if size > n:
                batch = _each(batch, lambda entry: torch.cat([entry, entry.new_zeros((size - n, *entry.shape[1:]))]))
            return self._answers(self._run(batch), size, [to_numpy] * n)

    def _answers(self, outputs: Any, size: int, to_numpy: list[bool]) -> Any:
        """Outputs for a batch that was padded to ``size`` as those of its samples, on the host; in ``inference_mode``.

        to_numpy: whether each sample gets arrays rather than tensors.
        """
        n = len(to_numpy)
        each = _results(outputs, size)
        tensors = each[:n] if each is not None else _map(outputs, lambda tensor: _rows(tensor, size, n))
        if self._copies is not None:
            tensors = _map(tensors, _to_pinned)
            torch.cuda.current_stream(self.device).synchronize()  # once, however many tensors and requests
        tensors = _map(tensors, torch.Tensor.cpu)
        arrays = _map(tensors, _to_numpy) if any(to_numpy) else None
        if isinstance(tensors, torch.Tensor) and len(set(to_numpy)) == 1:
            return tensors if arrays is None else arrays
        row: Callable[[Any, int], Any] = _row if each is None else operator.getitem
        return [row(arrays if numpy else tensors, i) for i, numpy in enumerate(to_numpy)]


@dataclass(frozen=True)
class _Staged:
    """A batch on the device once ``copied`` has happened."""

    batch: Any
    copied: torch.cuda.Event
    to_numpy: bool


class _Graphs:
    """A CUDA graph of a module for each shape of batch; outputs hold until the next call with that shape."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, Any, Any]] = {}

    def __call__(self, batch: Any) -> Any:
        shapes = _each(batch, lambda entry: (entry.shape, entry.dtype))
        key = tuple(shapes.items()) if isinstance(shapes, dict) else shapes
        if key not in self._captured:
            self._captured[key] = self._capture(batch)
        graph, inputs, outputs = self._captured[key]
        for entry, given in zip(_entries(inputs), _entries(batch), strict=True):
            entry.copy_(given)
        graph.replay()
        return outputs

    def _capture(self, batch: Any) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
        inputs = _each(batch, torch.clone)
        device = _entries(batch)[0].device
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # libraries choose their kernels and get their memory before the capture
            for _ in range(3):
                _call(self._module, inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other slots and the copying thread go on with CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = _call(self._module, inputs)
        return graph, inputs, outputs


def _call(module: Callable[..., Any], batch: Any) -> Any:
    """A mapping gives the arguments by name, a plain tuple by position, anything else is the only one."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if type(batch) is tuple else module(batch)


def _each(batch: Any, function: Callable[[Any], Any]) -> Any:
    """A stacked batch with ``function`` of each of its entries; of the array or tensor that it is."""
    if isinstance(batch, dict):
        return {name: function(entry) for name, entry in batch.items()}
    return tuple(map(function, batch)) if isinstance(batch, tuple) else function(batch)


def _entries(batch: Any) -> list[Any]:
    """The arrays or tensors of a stacked batch."""
    found: list[Any] = []
    _each(batch, found.append)
    return found


def padded_sizes(max_batch: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and ``max_batch``: a third of a batch at most is padding."""
    sizes = {size for k in range(max_batch.bit_length()) for size in (1 << k, 3 << k) if size < max_batch}
    return [*sorted(sizes), max_batch]


def _tensor(samples: npt.NDArray[Any] | torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(samples) if isinstance(samples, np.ndarray) else samples


def _holds_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, (tuple, list)):
        return any(map(_holds_tensor, value))
    return isinstance(value, torch.Tensor)


def _to_device(batch: Any, device: torch.device) -> Any:
    """What a ``collate`` returned with its arrays and tensors on ``device``, as tensors."""
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch).to(device)
    if callable(to := getattr(batch, "to", None)):  # a tensor, or what has some, such as a PackedSequence
        return to(device)
    if isinstance(batch, Mapping):
        return {name: _to_device(entry, device) for name, entry in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_to_device(entry, device) for entry in batch)
    return batch


def _map(outputs: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """``outputs`` with ``function`` of each of its tensors; None stays None."""
    if isinstance(outputs, torch.Tensor):
        return function(outputs)
    if isinstance(outputs, Mapping):
        return {key: _map(value, function) for key, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        items = [_map(value, function) for value in outputs]
        return tuple(items) if isinstance(outputs, tuple) else items
    if outputs is None or isinstance(outputs, BaseException):
        return outputs
    raise ValueError(
        f"module returned a {type(outputs).__name__}: it must return tensors, or a tuple, list or dict of tensors; "
        "serve a callable on a batch that picks them"
    )


def _results(outputs: object, size: int) -> list[Any] | None:
    """Outputs that are a list of one result for each sample, because an exception stands for some; None for others."""
    if not isinstance(outputs, (list, tuple)) or not any(isinstance(entry, BaseException) for entry in outputs):
        return None
    if len(outputs) != size:
        raise ValueError(
            f"module returned {len(outputs)} results, exceptions among them, for a batch of {size}: return {size}"
        )
    return list(outputs)


def _rows(tensor: torch.Tensor, size: int, n: int) -> torch.Tensor:
    """The first ``n`` rows of an output for a batch that was padded to ``size``."""
    if tensor.ndim == 0 or len(tensor) != size:
        raise ValueError(
            f"module returned a tensor of shape {tuple(tensor.shape)} for a batch of {size}: "
            f"its first dimension must be {size}"
        )
    return tensor[:n]


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` on its way to pinned host memory; there once its stream has been waited for."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    if tensor.is_floating_point() and tensor.dtype not in _NUMPY_FLOATS:
        tensor = tensor.float()
    return tensor.cpu().numpy()


def _row(outputs: Any, i: int) -> Any:
    if isinstance(outputs, dict):
        return {key: _row(value, i) for key, value in outputs.items()}
    if isinstance(outputs, tuple):
        return tuple(_row(value, i) for value in outputs)
    if isinstance(outputs, list):
        return [_row(value, i) for value in outputs]
    return None if outputs is None else outputs[i]
