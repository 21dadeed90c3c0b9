"""Writes the page at /, for people who open the gateway in a browser: what is deployed, and where to read on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from symphony_dask import __version__
from symphony_dask.gateway.upstream import Served
from symphony_dask.units import format_duration

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>symphony-dask gateway</title>
<style>body {{ font-family: sans-serif; margin: 2em }} td, th {{ text-align: left; padding-right: 2em }}</style>
</head><body>
<h1>symphony-dask gateway {version}</h1>
<p>{state}. All that it offers: <a href="/openapi.json">/openapi.json</a>. Metrics: <a href="/metrics">/metrics</a>.
Statistics: <a href="/v2/models/stats">/v2/models/stats</a>.</p>
<table><tr><th>model</th><th>version</th><th>SLO</th><th>GPU slots</th><th>infer</th></tr>
{rows}
</table></body></html>
"""


def page(models: Sequence[Served], connected: bool) -> str:
    """HTML; models: by name."""
    state = "Connected to the scheduler" if connected else "Not connected to the scheduler"
    return _PAGE.format(version=escape(__version__), state=state, rows="\n".join(map(_row, models)))


def _row(model: Served) -> str:
    path = f"/v2/models/{quote(model.name, safe='')}/versions/{quote(model.version, safe='')}"
    link = f'<a href="{escape(path)}">{escape(model.name)}</a>'
    cells = (link, escape(model.version), format_duration(model.slo_ns), str(model.slots), escape(f"POST {path}/infer"))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
