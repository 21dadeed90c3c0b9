"""Gives models colours on the dashboard's page: there are fewer colours than there can be models.

Rule 1: a model keeps its colour while it is busy, and after that for as long as no busier one needs it.
Rule 2: of models without a colour the busiest takes a free one, else that of the model that has been idle for longest,
        else that of one with less than half its rate (half, so that two of about one rate do not take turns).
Rule 3: a model that comes back takes the colour that it had, if that is free or held by an idle one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: Colours that the colour-blind can tell apart (Okabe, Ito); models beyond them share a grey one.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
GREY = "#8C8C8C"


def is_busy(model: dict[str, Any]) -> bool:
    """Whether requests of a model of ``Dispatcher.overview`` came, ended or wait."""
    return bool(model["rate_hz"] > 0 or model["ended_hz"] > 0 or model["queued"] > 0)


class Colours:
    """Colours by name of model, brought up to date by ``choose``."""

    def __init__(self) -> None:
        self._colour: dict[str, str] = {}  #: of those that have one
        self._had: dict[str, str] = {}
        self._idle_looks: dict[str, int] = {}

    def __getitem__(self, name: str) -> str:
        return self._colour.get(name, GREY)

    def choose(self, models: Sequence[dict[str, Any]]) -> None:
        """Take in what is there now, of ``Dispatcher.overview``."""
        rates = {m["name"]: float(max(m["rate_hz"], m["ended_hz"])) for m in models}
        busy = {m["name"]: is_busy(m) for m in models}
        for kept in (self._colour, self._had, self._idle_looks):
            for gone in kept.keys() - rates.keys():
                del kept[gone]
        for name in rates:
            self._idle_looks[name] = 0 if busy[name] else self._idle_looks.get(name, 0) + 1
        for name in sorted(rates, key=lambda name: (not busy[name], -rates[name], name)):
            if name not in self._colour and (colour := self._found(name, busy[name], rates)) is not None:
                for holder in [n for n, c in self._colour.items() if c == colour]:
                    del self._colour[holder]
                self._colour[name] = self._had[name] = colour

    def _found(self, name: str, busy: bool, rates: dict[str, float]) -> str | None:
        """The colour that this model may take now."""
        holders = {colour: holder for holder, colour in self._colour.items()}
        had = self._had.get(name)
        if had is not None and had not in holders:
            return had
        free = [colour for colour in COLOURS if colour not in holders]
        # One that somebody had before is left to him, where there is another.
        free.sort(key=lambda colour: colour in self._had.values())
        if free or not busy:
            return free[0] if free else None
        idle = {c: looks for c, holder in holders.items() if (looks := self._idle_looks[holder])}
        if had in idle:
            return had
        if idle:
            return max(idle, key=lambda colour: idle[colour])
        least = min(holders, key=lambda colour: rates[holders[colour]])
        return least if 2 * rates[holders[least]] < rates[name] else None
