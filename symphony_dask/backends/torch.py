"""PyTorch modules as batch callables."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from symphony_dask.errors import BadInput

_NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


class TorchModel:
    """Calls ``module`` on batches, in eval mode and inference mode.

    device: such as "cuda:0"; by default "cuda" if there is one, else "cpu". The module is moved there for good.

    Samples and results cross between host and device once per batch. Results are of the samples' kind, numpy arrays
    (bfloat16 and float8 as float32) or CPU tensors. A tuple, list or dict of tensors of shape (n, ...), nested or not,
    becomes n tuples, lists or dicts of their rows.
    """

    def __init__(self, module: torch.nn.Module, device: str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.module = module.to(self.device).eval()

    def __call__(self, samples: Any) -> Any:
        """The n results for n samples, an array or tensor of shape (n, ...).

        Raises ``BadInput`` if the samples are neither and ``ValueError`` if an output has not n rows.
        """
        if not isinstance(samples, (np.ndarray, torch.Tensor)):
            raise BadInput(
                f"a torch module takes arrays or tensors; got {type(samples[0]).__name__}: "
                "send one, or serve a callable on a batch that makes tensors of the samples and calls the module"
            )
        with torch.inference_mode():
            batch = torch.from_numpy(samples) if isinstance(samples, np.ndarray) else samples
            outputs = _to_host(self.module(batch.to(self.device)), len(samples), isinstance(samples, np.ndarray))
        if isinstance(outputs, (np.ndarray, torch.Tensor)):
            return outputs
        return [_row(outputs, i) for i in range(len(samples))]


def _to_host(outputs: Any, n: int, to_numpy: bool) -> Any:
    """``outputs`` with its tensors copied to the host, as numpy arrays or tensors; None stays None."""
    if isinstance(outputs, torch.Tensor):
        if outputs.ndim == 0 or len(outputs) != n:
            raise ValueError(
                f"module returned a tensor of shape {tuple(outputs.shape)} for a batch of {n}: "
                f"its first dimension must be {n}"
            )
        if not to_numpy:
            return outputs.cpu()
        if outputs.is_floating_point() and outputs.dtype not in _NUMPY_FLOATS:
            outputs = outputs.float()
        return outputs.cpu().numpy()
    if isinstance(outputs, dict):
        return {key: _to_host(value, n, to_numpy) for key, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        items = [_to_host(value, n, to_numpy) for value in outputs]
        return tuple(items) if isinstance(outputs, tuple) else items
    if outputs is None:
        return None
    raise ValueError(
        f"module returned a {type(outputs).__name__}: it must return tensors, or a tuple, list or dict of tensors; "
        "serve a callable on a batch that picks them"
    )


def _row(outputs: Any, i: int) -> Any:
    if isinstance(outputs, dict):
        return {key: _row(value, i) for key, value in outputs.items()}
    if isinstance(outputs, tuple):
        return tuple(_row(value, i) for value in outputs)
    if isinstance(outputs, list):
        return [_row(value, i) for value in outputs]
    return None if outputs is None else outputs[i]
