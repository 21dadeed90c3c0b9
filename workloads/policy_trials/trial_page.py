"""Writes trials as one HTML page that needs no network: GPUs over time against demand, and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from workloads.analysis.svg import COLOURS, DASHES, Chart, legend
from workloads.policy_trials.trial import Trial

#: A chart has about so many points across.
_POINTS = 1200

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;margin:24px auto;max-width:1200px;padding:0 20px}
table{border-collapse:collapse;margin:10px 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
svg{width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:#333}
svg .grid{stroke:#e6e6e6}
svg .axis{stroke:#666}
.legend{display:flex;gap:10px}
.legend button{font:13px system-ui,sans-serif;border:0;background:none;display:flex;gap:6px;align-items:center}
.legend svg{width:30px;height:10px}
"""

_SERIES = (("demand", COLOURS[3], ""), ("GPUs that serve", COLOURS[0], ""), ("and that boot", COLOURS[1], DASHES[2]))


def chart(trial: Trial) -> str:
    """GPUs that serve, those that boot on top, and the demand, over the hours of the trace, as SVG."""
    ticks = trial.ticks
    parts = np.array_split(ticks, max(1, min(len(ticks), _POINTS)))
    # Of the ticks of one point the most: a peak must be seen.
    rows = np.array([part.max(0) for part in parts]) if len(ticks) else np.zeros((1, 6))
    hours, serving, booting, demand = rows[:, 0] / 3600, rows[:, 2], rows[:, 3], rows[:, 5]
    top = float(max((serving + booting).max(), demand.max(), 1))
    drawn = Chart(
        x=(0, trial.span_s / 3600), y=(0, 1.05 * top), x_title="hours", y_title="GPUs", width=1100, height=300
    )
    for (name, colour, dash), values in zip(_SERIES, (demand, serving, serving + booting), strict=True):
        points = zip(hours.tolist(), values.tolist(), strict=True)
        drawn.line(points, colour=colour, series=name, dash=dash, step=name != "demand")
    return drawn.text()


def page(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], trials: Sequence[tuple[str, Trial]]) -> str:
    """The HTML text: a table of text cells, and a chart for each trial by its name."""
    table = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    charts = "".join(f"<section><h2>{escape(name)}</h2>{chart(trial)}</section>" for name, trial in trials)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<table><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>{table}</table>"
        f"{legend(_SERIES)}{charts}</body></html>\n"
    )
