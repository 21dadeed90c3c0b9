"""Provides a model that misbehaves when it is told to, and writes down what it ran."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Rows of the files ``executed-PID``: a sample's first number, and when its batch began (``time.monotonic_ns``).
EXECUTED = np.dtype([("sample", "<i8"), ("time", "<i8")])

#: What a model can be told to do, and what that is in words.
MODES = {
    "": "doubles its samples, in l(b)",
    "raise": "raises",
    "memory": "raises MemoryError, as a device does that is full",
    "hang": "hangs until it is told otherwise",
    "stuck": "hangs for ever",
    "slow": "takes ten times as long as its profile says",
    "short": "returns one answer too few",
    "shape": "returns one number for the whole batch",
    "nothing": "returns None",
    "leak": "keeps four megabytes more after each batch",
    "gil": "blocks its whole process for a second, as C code does that keeps the interpreter's lock",
    "exit": "ends its process",
}

_SLOW = 10
_LEAKED_BYTES = 4 << 20


class Scripted:
    """Doubles samples of a number each, in l(b) = alpha b + beta, unless the file ``folder/NAME`` names another mode.

    The same on whichever worker of this machine. What it ran is in ``folder/executed-PID`` of each worker's process,
    unless ``log`` is False.
    """

    def __init__(self, folder: str, name: str, alpha_ms: float, beta_ms: float, *, log: bool = True) -> None:
        self.folder, self.name, self.log = folder, name, log
        self.alpha_ms, self.beta_ms = alpha_ms, beta_ms
        self._leaked: list[bytearray] = []

    def __call__(self, batch: npt.NDArray[np.float64]) -> Any:
        if self.log:
            self._write_down(batch)
        mode = self.mode()
        seconds = (self.alpha_ms * len(batch) + self.beta_ms) / 1000
        time.sleep(seconds * _SLOW if mode == "slow" else seconds)
        if mode != "leak":
            self._leaked.clear()
        elif mode:
            self._leaked.append(bytearray(os.urandom(1 << 10)) * (_LEAKED_BYTES >> 10))
        return self._answer(batch, mode)

    def _answer(self, batch: npt.NDArray[np.float64], mode: str) -> Any:
        if mode == "raise":
            raise RuntimeError("the model was told to raise")
        if mode == "memory":
            raise MemoryError("the model was told to be out of memory")
        if mode == "gil":
            ctypes.PyDLL(None).usleep(999_999)
        elif mode == "exit":
            os._exit(1)
        while mode in ("hang", "stuck"):
            time.sleep(0.01)
            mode = mode if mode == "stuck" else self.mode()
        wrong = {"short": batch[1:], "shape": float(batch.sum()), "nothing": None}
        return wrong[mode] if mode in wrong else batch * 2

    def mode(self) -> str:
        try:
            return (Path(self.folder) / self.name).read_text()
        except FileNotFoundError:
            return ""

    def _write_down(self, batch: npt.NDArray[np.float64]) -> None:
        samples = np.asarray(batch).reshape(len(batch), -1)[:, 0]
        rows = np.zeros(len(samples), EXECUTED)
        rows["sample"], rows["time"] = samples, time.monotonic_ns()
        handle = os.open(f"{self.folder}/executed-{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, rows.tobytes())
        finally:
            os.close(handle)


def set_mode(folder: str, name: str, mode: str) -> None:
    """Have the model ``name`` do one of ``MODES`` from its next batch on."""
    file = Path(folder) / name
    beside = file.with_suffix(".new")
    beside.write_text(mode)
    beside.replace(file)


def executed(folder: str) -> dict[int, npt.NDArray[Any]]:
    """Rows of ``EXECUTED`` by process."""
    return {
        int(file.name.removeprefix("executed-")): np.fromfile(file, EXECUTED)
        for file in Path(folder).glob("executed-*")
    }
