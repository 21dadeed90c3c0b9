"""Models that the tests deploy. Workers import this module: keep it light."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def double(batch: Any) -> Any:
    return batch * 2


def total(batch: Any) -> Any:
    """The sum of each sample."""
    return batch.reshape(len(batch), -1).sum(axis=1)


def load_double() -> Callable[[Any], Any]:
    return double


def load_nothing() -> Callable[[Any], Any]:
    raise FileNotFoundError("no weights here")


def one_answer_short(batch: Any) -> Any:
    return batch[1:]


def divide(batch: Any) -> list[float]:
    """1/x of each sample, a float."""
    return [1 / x for x in batch]


def die_on_load() -> Callable[[Any], Any]:
    os.kill(os.getpid(), 9)
    raise AssertionError


def sleepy(batch: Any) -> Any:
    """Takes 32 ms, whatever its size."""
    time.sleep(0.032)
    return batch


def slow(batch: Any) -> Any:
    time.sleep(0.5)
    return batch


def slow_double(batch: Any) -> Any:
    time.sleep(0.02)
    return batch * 2


def break_lane(dask_worker: Any) -> None:
    """Hang up a worker's lane connection; its Dask connection stays."""
    dask_worker.plugins["symphony"]._slot_worker.connection.close()


def close_inbox(dask_worker: Any) -> None:
    """Have a worker take no connections of clients any more, and hang up on those that it has."""
    inbox = dask_worker.plugins["symphony"]._slot_worker.inbox
    inbox._listener.close()
    inbox._listener.hang_up()


def reverse(batch: Any) -> list[bytes]:
    """Each sample, bytes, from its end to its begin."""
    return [sample[::-1] for sample in batch]


def megabyte(batch: Any) -> list[bytes]:
    """A million bytes for each sample."""
    return [bytes(sample[:1]) * 1_000_000 for sample in batch]


def linear() -> Any:
    """A torch module of 4 inputs and 3 outputs, with the same weights each time."""
    pytest.importorskip("torch")
    import torch

    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()


def convolution() -> Any:
    """A small torch network for images of shape (3, 8, 8), with the same weights each time."""
    import torch

    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).eval()


def encoder() -> Any:
    """A torch module of two inputs by name: tokens 0 to 9, of which i is embedded as i, i, i, i, and their mask.

    Answers are dict-like: "last" of shape (n, length, 4), 0 where the mask is, its sum "pooled" of shape (n, 4), and
    "length", a scalar.
    """
    pytest.importorskip("torch")
    import torch

    class Output(OrderedDict[str, Any]):
        """As what transformers' models return: a dict with attributes."""

        def __getattr__(self, name: str) -> Any:
            return self[name]

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding.from_pretrained(torch.arange(10.0)[:, None].repeat(1, 4))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            last = self.embed(input_ids) * attention_mask[..., None]
            return Output(last=last, pooled=last.sum(1), length=attention_mask.sum(1))

    return Encoder().eval()


def weighted() -> Any:
    """A torch module of two inputs by position, x and a factor: answers a tuple of x * factor and x + factor."""
    pytest.importorskip("torch")
    import torch

    class Weighted(torch.nn.Module):
        def forward(self, x: Any, factor: Any) -> Any:
            return x * factor[:, None], x + factor[:, None]

    return Weighted()


def tokens(*ids: int, mask: int = 1) -> dict[str, Any]:
    """A sample for ``encoder``."""
    return {"input_ids": np.array(ids, np.int64), "attention_mask": np.full(len(ids), mask, np.int64)}


def pad(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """``collate`` of samples for ``encoder`` of different lengths."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    short = [longest - len(sample["input_ids"]) for sample in samples]
    return {
        name: np.stack([np.pad(sample[name], (0, n)) for sample, n in zip(samples, short, strict=True)])
        for name in ("input_ids", "attention_mask")
    }


class Gate:
    """A file that lets ``model`` answer once it is there."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")

    def open(self) -> None:
        Path(self.path).touch()

    def model(self, then: Callable[[Any], Any] = double) -> Callable[[Any], Any]:
        """A model that answers as ``then``, after it has waited for the gate."""
        path = self.path

        def wait(batch: Any) -> Any:
            while not os.path.exists(path):
                time.sleep(0.002)
            return then(batch)

        return wait


class FailsAtFirst:
    """A model that raises at the first ``times`` batches, on whichever worker of this machine, and then doubles."""

    def __init__(self, folder: Path, times: int = 1) -> None:
        self.folder = str(folder)
        self.times = times

    def __call__(self, batch: Any) -> Any:
        seen = sorted(Path(self.folder).glob("failed-*"))
        if len(seen) < self.times:
            (Path(self.folder) / f"failed-{len(seen)}").touch()
            raise RuntimeError("not today")
        return batch * 2


class SlowToLoad(dict[str, float]):
    """A sample that takes half a second to be unpickled, as something large that a worker fetches from another."""

    def __reduce__(self) -> Any:
        return _load_slowly, (dict(self),)


def _load_slowly(sample: dict[str, float]) -> SlowToLoad:
    time.sleep(0.5)
    return SlowToLoad(sample)


def values(batch: Any) -> list[float]:
    """The "value" of each sample, a dict."""
    return [sample["value"] for sample in batch]


class Counted:
    """Loads ``then`` in ``load_s`` seconds; each load leaves a file in ``folder``, of this machine."""

    def __init__(self, folder: Path, load_s: float = 0.0, then: Any = double) -> None:
        self.folder = str(folder)
        self.load_s = load_s
        self.then = then

    def __call__(self) -> Any:
        handle, _ = tempfile.mkstemp(prefix="load-", dir=self.folder)
        os.close(handle)
        time.sleep(self.load_s)
        return self.then

    def loads(self) -> int:
        return len(list(Path(self.folder).glob("load-*")))


class FailsToLoad(Counted):
    """The same, but those loads whose numbers, from 1 on, are in ``which`` raise ``error``."""

    def __init__(self, folder: Path, which: set[int], error: BaseException) -> None:
        super().__init__(folder)
        self.which = which
        self.error = error

    def __call__(self) -> Any:
        then = super().__call__()
        if self.loads() in self.which:
            raise self.error
        return then


class HangsOnLoad:
    """Loads ``double`` once the file ``path`` is there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> Any:
        while not os.path.exists(self.path):
            time.sleep(0.005)
        return double


def constant(x: float) -> Callable[[Any], Any]:
    """A model that answers ``x`` whatever it is asked."""
    return partial(_answer, x)


def _answer(x: float, batch: Any) -> list[float]:
    return [x] * len(batch)


def scale(batch: Any) -> list[dict[str, Any]]:
    """Of each sample, a dict of an array "x" and a number "factor", their product and the latter."""
    return [{"scaled": sample["x"] * sample["factor"], "factor": sample["factor"]} for sample in batch]


def same(batch: Any) -> Any:
    return batch


class Mute(Exception):
    """Cannot be written."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Odd(Exception):
    """Whatever is asked of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def _hostile_error(what: str) -> BaseException:
    with_note = ValueError("noted")
    with_note.add_note("note \udce9")
    return {
        "surrogate": ValueError("x \udce9"),
        "mute": Mute(),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "cancelled": asyncio.CancelledError(),
        "generator": GeneratorExit(),
        "odd": Odd(),
        "notes": with_note,
        "group": BaseExceptionGroup("several", [KeyError("\udce9"), SystemExit()]),
        "controls": RuntimeError("\x1b[31m\x00"),
        "huge": ValueError("x" * 50_000_000 + " the end"),
    }[what]


def hostile(batch: list[str]) -> list[str]:
    """The samples, but "surrogate" and its like raise."""
    for what in batch:
        if what != "fine":
            raise _hostile_error(what)
    return batch


class HostileLoader:
    """Raises as ``hostile`` when it is loaded."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self) -> Any:
        raise _hostile_error(self.what)


class HostileLater:
    """Raises as ``hostile`` from the third batch on."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.batches = 0

    def __call__(self, batch: Any) -> Any:
        self.batches += 1
        if self.batches > 2:
            raise _hostile_error(self.what)
        return batch


def picky(batch: list[str]) -> list[Any]:
    """The numbers that samples are; in place of what is none an exception, or what cannot be sent."""
    other = {"object": object(), "surrogate": "\udce9", "mute": Mute()}
    return [int(x) if x.isdigit() else other.get(x, ValueError(f"{x} is no number")) for x in batch]


def no_negatives() -> Any:
    """A torch module that doubles, but gives an exception for a sample with a negative number."""
    import torch

    class NoNegatives(torch.nn.Module):
        def forward(self, batch: Any) -> Any:
            if (batch >= 0).all():
                return batch * 2
            return [ValueError("negative") if (row < 0).any() else row * 2 for row in batch]

    return NoNegatives()


def lengths(batch: list[Any]) -> list[int]:
    return [len(sample) for sample in batch]


def five_mib(batch: Any) -> list[bytes]:
    """Five MiB of each sample's first byte."""
    return [bytes(sample[:1]) * (5 << 20) for sample in batch]


def sixty_mib(batch: Any) -> list[Any]:
    """An array of 60 MiB for each sample."""
    import numpy as np

    return [np.zeros(60 << 20, np.uint8) for _ in batch]


#: A model as ``symphony apply`` reads it, and a file that declares it and another.
DECLARED_DOUBLE = {"model": "tests.helpers.models:double", "slo": 60 * 10**9, "profile": "0.1,0.5"}
DECLARED = """
models:
  net:
    model: tests.helpers.models:double
    slo: 60s
    profile: 0.1,0.5
  emulated:
    emulated: 0.1,1
    slo: 1s
    memory: 1KiB
    pinned: true
"""
