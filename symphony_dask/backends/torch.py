"""PyTorch modules as batch callables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from symphony_dask.errors import BadInput

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


class TorchModel:
    """Calls ``module`` on batches, in eval mode and inference mode.

    device: such as "cuda:0"; by default "cuda" if there is one, else "cpu". The module is moved there for good.
    optimize: None; "compile" (``torch.compile``); or "cuda-graphs", a captured graph replayed for each batch. Either
        way batches are padded with zeros to ``batch_sizes``, each of which is compiled or captured when it first comes,
        and the module must treat the samples of a batch independently of each other.
    max_batch: the largest of ``batch_sizes``; larger batches run as they are.

    Samples and results cross between host and device once per batch, on CUDA through pinned memory; ``stage`` sends
    samples ahead, on a stream of its own. Results are of the samples' kind, numpy arrays (bfloat16 and float8 as
    float32) or CPU tensors. A tuple, list or dict of tensors of shape (n, ...), nested or not, becomes n tuples, lists
    or dicts of their rows. A list of n results in which an exception stands for some is taken as it is.

    Raises ``BadInput`` for CUDA graphs on another device.
    """

    def __init__(
        self, module: torch.nn.Module, device: str | None = None, optimize: str | None = None, max_batch: int = 0
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.module = module.to(self.device).eval()
        self.batch_sizes: list[int] = []
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._run: Callable[[torch.Tensor], Any] = self.module
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
            self._run = torch.compile(self.module, dynamic=False)

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
        if self._copies is None or not isinstance(samples, (np.ndarray, torch.Tensor)):
            return samples
        with torch.cuda.stream(self._copies):
            batch = _tensor(samples).pin_memory().to(self.device, non_blocking=True)
            return _Staged(batch, self._copies.record_event(), isinstance(samples, np.ndarray))

    def __call__(self, samples: Any) -> Any:
        """The n results for n samples: an array or tensor of shape (n, ...), or what ``stage`` made of it.

        Raises ``BadInput`` if the samples are neither and ``ValueError`` if an output has not n rows.
        """
        if isinstance(samples, _Staged):
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(samples.copied)
            samples.batch.record_stream(stream)
            return self._outputs(samples.batch, samples.to_numpy)
        if not isinstance(samples, (np.ndarray, torch.Tensor)):
            raise BadInput(
                f"a torch module takes arrays or tensors; got {type(samples[0]).__name__}: "
                "send one, or serve a callable on a batch that makes tensors of the samples and calls the module"
            )
        return self._outputs(_tensor(samples).to(self.device), isinstance(samples, np.ndarray))

    def _outputs(self, batch: torch.Tensor, to_numpy: bool) -> Any:
        n = len(batch)
        size = next((size for size in self.batch_sizes if size >= n), n)
        with torch.inference_mode():
            if size > n:
                batch = torch.cat([batch, batch.new_zeros((size - n, *batch.shape[1:]))])
            outputs = self._run(batch)
            each = _results(outputs, size)
            outputs = each[:n] if each is not None else _map(outputs, lambda tensor: _rows(tensor, size, n))
            if self._copies is not None:
                outputs = _map(outputs, _to_pinned)
                torch.cuda.current_stream(self.device).synchronize()  # once, however many tensors and requests
            outputs = _map(outputs, _to_numpy if to_numpy else torch.Tensor.cpu)
        if each is not None or isinstance(outputs, (np.ndarray, torch.Tensor)):
            return outputs
        return [_row(outputs, i) for i in range(n)]


@dataclass(frozen=True)
class _Staged:
    """A batch on the device once ``copied`` has happened."""

    batch: torch.Tensor
    copied: torch.cuda.Event
    to_numpy: bool


class _Graphs:
    """A CUDA graph of a module for each shape of batch; outputs hold until the next call with that shape."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, torch.Tensor, Any]] = {}

    def __call__(self, batch: torch.Tensor) -> Any:
        key = (batch.shape, batch.dtype)
        if key not in self._captured:
            self._captured[key] = self._capture(batch)
        graph, inputs, outputs = self._captured[key]
        inputs.copy_(batch)
        graph.replay()
        return outputs

    def _capture(self, batch: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, Any]:
        inputs = batch.clone()
        side = torch.cuda.Stream(batch.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.stream(side):  # libraries choose their kernels and get their memory before the capture
            for _ in range(3):
                self._module(inputs)
        torch.cuda.current_stream(batch.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other slots and the copying thread go on with CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._module(inputs)
        return graph, inputs, outputs


def padded_sizes(max_batch: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and ``max_batch``: a third of a batch at most is padding."""
    sizes = {size for k in range(max_batch.bit_length()) for size in (1 << k, 3 << k) if size < max_batch}
    return [*sorted(sizes), max_batch]


def _tensor(samples: Any) -> torch.Tensor:
    return torch.from_numpy(samples) if isinstance(samples, np.ndarray) else samples


def _map(outputs: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """``outputs`` with ``function`` of each of its tensors; None stays None."""
    if isinstance(outputs, torch.Tensor):
        return function(outputs)
    if isinstance(outputs, dict):
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


def _results(outputs: Any, size: int) -> list[Any] | None:
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


def _to_numpy(tensor: torch.Tensor) -> Any:
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
