"""Draws charts as inline SVG: axes with round numbers, lines, steps and rectangles. Plain text out, nothing else
needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

#: Colours that the colour-blind can tell apart (Okabe, Ito); lines differ in their dashes too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
REST = "#7F7F7F"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2", "12 4")

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 46


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``most`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's number: "12,000", "0.25"."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return "0" if text == "-0" else text


class Chart:
    """One pair of axes; ``text()`` gives the SVG element. Coordinates are those of the data."""

    def __init__(
        self,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        x_title: str,
        y_title: str,
        width: int = 560,
        height: int = 270,
        percent: bool = False,
        y_names: Sequence[str] | None = None,
        x_names: Sequence[str] | None = None,
        left: int = _LEFT,
    ) -> None:
        """percent: y is a share, shown in per cent. y_names, x_names: of the places 0, 1, ..., instead of numbers."""
        self.x, self.y = _range(x), _range(y)
        self.width, self.height, self.left = width, height, left
        self._marks: list[str] = []
        self._x_title, self._y_title, self._percent = x_title, y_title, percent
        self._y_names, self._x_names = y_names, x_names

    def px(self, x: float) -> float:
        low, high = self.x
        return self.left + (min(max(x, low), high) - low) / (high - low) * (self.width - self.left - _RIGHT)

    def py(self, y: float) -> float:
        low, high = self.y
        inner = self.height - _TOP - _BOTTOM
        return self.height - _BOTTOM - (min(max(y, low), high) - low) / (high - low) * inner

    def line(
        self,
        points: Iterable[tuple[float, float | None]],
        *,
        colour: str,
        series: str,
        dash: str = "",
        step: bool = False,
    ) -> None:
        """A line through the points, broken where y is None; a point between two gaps becomes a dot."""
        path: list[str] = []
        last = None
        for x, y in points:
            if y is None:
                last = None
                continue
            at, height = self.px(x), self.py(y)
            if step and last is not None:
                path.append(f"L{at:.1f} {last:.1f}")
            # A line of no length has round ends, so it is seen.
            path.append(f"M{at:.1f} {height:.1f}h0" if last is None else f"L{at:.1f} {height:.1f}")
            last = height
        if path:
            self._marks.append(
                f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linecap="round" '
                f'stroke-dasharray="{dash}" data-series="{escape(series)}"><title>{escape(series)}</title></path>'
            )

    def box(self, x: tuple[float, float], y: tuple[float, float], *, colour: str, series: str, title: str) -> None:
        left, right, bottom, top = self.px(x[0]), self.px(x[1]), self.py(y[0]), self.py(y[1])
        self._marks.append(
            f'<rect x="{left:.2f}" y="{top:.2f}" width="{max(right - left, 0.4):.2f}" height="{bottom - top:.2f}" '
            f'fill="{colour}" data-series="{escape(series)}"><title>{escape(title)}</title></rect>'
        )

    def upright(self, x: float, text: str, row: int = 0) -> None:
        """A thin vertical line with a text at its top."""
        if not self.x[0] <= x <= self.x[1]:
            return
        at = self.px(x)
        anchor, beside = ("start", at + 3) if at < 0.85 * self.width else ("end", at - 3)
        self._marks.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{self.height - _BOTTOM}" class="mark"/>'
            f'<text x="{beside:.1f}" y="{_TOP + 10 + 12 * row}" text-anchor="{anchor}" class="small">'
            f"{escape(text)}</text>"
        )

    def note(self, x: float, y: float, text: str) -> None:
        """A text to the right of a point."""
        at, height = self.px(x) + 5, self.py(y) + 4
        self._marks.append(f'<text x="{at:.1f}" y="{height:.1f}" class="small">{escape(text)}</text>')

    def text(self) -> str:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        out = [f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self._y_title)}">']
        for i, value in enumerate(self._ticks(self.y, self._y_names)):
            at = self.py(value)
            label = self._y_names[i] if self._y_names else _percent(value) if self._percent else number(value)
            out.append(f'<line x1="{self.left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
            out.append(f'<text x="{self.left - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(label)}</text>')
        for i, value in enumerate(self._ticks(self.x, self._x_names)):
            at = self.px(value)
            label = self._x_names[i] if self._x_names else number(value)
            out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>')
            out.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(label)}</text>')
        out += self._marks
        out.append(f'<path d="M{self.left} {_TOP}V{bottom}H{right}" class="axis" fill="none"/>')
        middle = (self.left + right) / 2
        out.append(f'<text x="{middle}" y="{self.height - 8}" text-anchor="middle">{escape(self._x_title)}</text>')
        centre = (_TOP + bottom) / 2
        out.append(
            f'<text x="13" y="{centre}" text-anchor="middle" transform="rotate(-90 13 {centre})">'
            f"{escape(self._y_title)}</text></svg>"
        )
        return "".join(out)

    def _ticks(self, extent: tuple[float, float], names: Sequence[str] | None) -> list[float]:
        return ticks(*extent) if names is None else [float(i) for i in range(len(names))]


def _range(extent: tuple[float, float]) -> tuple[float, float]:
    low, high = extent
    return (low, high) if high > low else (low, low + 1)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Names with their (colour, dash) as a row of small samples: entries of (name, colour, dash)."""
    items = [
        f'<button type="button" data-legend="{escape(name)}"><svg viewBox="0 0 30 10"><path d="M1 5H29" '
        f'stroke="{colour}" stroke-width="4" stroke-dasharray="{dash}"/></svg>{escape(name)}</button>'
        for name, colour, dash in entries
    ]
    return f'<div class="legend">{"".join(items)}</div>'
