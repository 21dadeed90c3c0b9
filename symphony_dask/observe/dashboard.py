"""Draws the page "Symphony" on Dask's dashboard, at /symphony and in its menu: what is served, how well, on which GPUs.

Everything is read from the dispatcher in this process, once a second and only while somebody has the page open. Without
bokeh, or where the scheduler has no dashboard, there is no page and nothing is imported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.dispatcher import Dispatcher
from symphony_dask.dispatcher.recent_activity import HISTORY_S, REASONS, RECENT_S, reasons
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.observe.colours import GREY, Colours, is_busy
from symphony_dask.observe.overview_text import (
    GPU_COLUMNS,
    MODEL_COLUMNS,
    by_activity,
    fleet_lines,
    gpu_row,
    model_row,
    percent,
    rules_text,
    several,
)
from symphony_dask.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    import numpy.typing as npt
    from bokeh.document import Document
    from bokeh.plotting import figure
    from distributed import Scheduler

logger = logging.getLogger(__name__)

PATH = "/symphony"

#: How often an open page is brought up to date, ms.
UPDATE_MS = 1000

#: Most batches in the timeline, and most dots among the windows. With more batches the time shown is shorter, one of
#: these, s; of the dots every so many are left out.
MOST_BATCHES, MOST_DOTS = 600, 300
SPANS_S = (RECENT_S, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)

_STYLE = "font: 13px/1.35 Helvetica, Arial, sans-serif; color: #222"


def install(scheduler: Scheduler, dispatcher: Dispatcher, fleets: Callable[[], dict[str, Any]]) -> bool:
    """Add the page to a Dask scheduler, before or after its start; False where it has no dashboard.

    fleets: ``Fleets.status``.
    """
    try:
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables
        from tornado.ioloop import IOLoop
    except ImportError:
        return False
    router = scheduler.http_application
    dask = next((a for a in getattr(router, "applications", ()) if "/status" in getattr(a, "app_paths", ())), None)
    if dask is None:
        return False
    variables = template_variables(scheduler)
    if "symphony" not in variables["pages"]:
        variables["pages"].append("symphony")  # every page's menu is made from this list

    def document(scheduler: Scheduler, extra: dict[str, Any], doc: Document) -> None:
        Page(dispatcher, fleets).show(doc, extra)

    page = BokehApplication({PATH: document}, scheduler, prefix=dask.prefix, template_variables=variables)
    router.add_application(page)
    page.initialize(IOLoop.current())
    page.start()
    return True


class Page:
    """One open page. Times on its axes are seconds, up to now at 0."""

    def __init__(self, dispatcher: Dispatcher, fleets: Callable[[], dict[str, Any]]) -> None:
        from bokeh.models import ColumnDataSource, Div, FixedTicker, Range1d

        self._dispatcher, self._fleets = dispatcher, fleets
        self._colours = Colours()
        self._summary = Div(name="symphony-summary", sizing_mode="stretch_width", margin=(4, 10, 2, 10))
        source = ColumnDataSource
        self._lines = source({"model": [], "colour": [], "seconds": [], "goodput": [], "attainment": []})
        self._sizes = source({"size": [], "bottom": [], "top": [], "colour": [], "model": []})
        self._timeline = source(
            {"left": [], "right": [], "bottom": [], "top": [], "colour": [], "alpha": [], "model": [], "size": []}
        )
        self._windows = source(
            {"seconds": [], "at": [], "width": [], "colour": [], "model": [], "reason": [], "rule": []}
        )
        self._models, self._gpus = (
            Div(
                name=f"symphony-{what}",
                sizing_mode="stretch_width",
                height=160,
                margin=(4, 10, 0, 10),
                styles={"overflow-y": "auto"},
                stylesheets=[".bk-clearfix { width: 100%; }"],
            )
            for what in ("models", "gpus")
        )
        self._span, self._ranks = Range1d(-RECENT_S, 0), Range1d(-0.5, 0.5)
        self._most_goodput, self._most_batches, self._most_size = Range1d(0, 10), Range1d(0, 10), Range1d(0.5, 8.5)
        self._rank_ticks = FixedTicker(ticks=[0])

    def show(self, doc: Document, extra: dict[str, Any]) -> None:
        """Fill a bokeh document, and keep it up to date."""
        from bokeh.layouts import column, row
        from distributed.dashboard.components.scheduler import BOKEH_THEME, env

        wide = {"sizing_mode": "stretch_width"}
        upper = row(self._goodput(), self._attainment(), self._batch_sizes(), height=185, **wide)
        middle = row(self._gantt(), self._left(), height=215, **wide)
        lower = row(self._models, self._gpus, height=165, **wide)
        doc.add_root(column(self._summary, upper, middle, lower, name="symphony-page", **wide))
        doc.title = "Dask: Symphony"
        doc.template = env.get_template("simple.html")
        doc.template_variables.update(extra)
        doc.theme = BOKEH_THEME
        self.update()
        doc.add_periodic_callback(self._update_safely, UPDATE_MS)

    def _update_safely(self) -> None:
        try:
            self.update()
        except Exception:
            logger.exception("the Symphony page could not be brought up to date")

    def update(self) -> None:
        """Take in what is now."""
        recent, overview, now = self._dispatcher.activity, self._dispatcher.overview() | self._fleets(), now_ns()
        overview = overview | {"models": by_activity(overview["models"])}
        ids = {m["name"]: m["model_id"] for m in overview["models"]}
        self._colours.choose(overview["models"])
        self._summary.text = summary(overview)
        # The busiest are drawn last, above the others.
        shown = [m["name"] for m in reversed(overview["models"]) if self._colours[m["name"]] != GREY or is_busy(m)]
        histories = {name: recent.history(ids[name]) for name in shown}
        self._lines.data = {
            "model": list(histories),
            "colour": [self._colours[name] for name in histories],
            "seconds": [h[0] for h in histories.values()],
            "goodput": [h[1] for h in histories.values()],
            "attainment": [[100 * a for a in h[2]] for h in histories.values()],
        }
        self._most_goodput.end = 1.1 * max((g for h in histories.values() for g in h[1]), default=0) or 10
        batches = recent.last()
        batches = batches[batches["end"] > now - RECENT_S * NS_PER_S]
        names = {i: name for name, i in ids.items()}
        known = np.isin(batches["model"], list(names))
        batches = batches[known]
        self._show_sizes(batches, names)
        span_s = span_of(batches["end"], now)
        batches = batches[batches["end"] > now - int(span_s * NS_PER_S)][-MOST_BATCHES:]
        self._span.start = -span_s
        self._show_timeline(batches, names, {g["gpu"]: g["rank"] for g in overview["gpus"]}, now)
        self._show_windows(batches[:: -(-len(batches) // MOST_DOTS) or 1], names, now)
        self._timeline_title.text = f"GPU timeline by rank, last {span_s:g} s"
        self._windows_title.text = f"Dispatches within their windows, %, last {span_s:g} s"
        self._show_tables(overview)

    # Figures

    def _figure(self, title: str, name: str, height: int, **options: object) -> figure:
        from bokeh.plotting import figure

        plot = figure(
            title=title,
            name=name,
            height=height,
            sizing_mode="stretch_width",
            toolbar_location=None,
            tools="",
            **options,
        )
        plot.title.text_font_size = "12px"
        plot.title.text_color = "#222222"
        plot.grid.grid_line_color = "#E6E6E6"
        plot.outline_line_color = "#D0D0D0"
        plot.axis.minor_tick_line_color = None
        plot.axis.axis_line_color = "#A0A0A0"
        plot.axis.major_label_text_font_size = "11px"
        return plot

    def _time_line(self, title: str, name: str, column: str, **options: object) -> figure:
        plot = self._figure(title, name, 185, x_range=(-HISTORY_S, 0), **options)
        plot.multi_line("seconds", column, line_color="colour", line_width=2, source=self._lines)
        return plot

    def _goodput(self) -> figure:
        from bokeh.models import NumeralTickFormatter

        title = f"Goodput, requests/s, last {HISTORY_S} s"
        plot = self._time_line(title, "symphony-goodput", "goodput", y_range=self._most_goodput)
        plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
        return plot

    def _attainment(self) -> figure:
        title = f"SLO attainment, %, last {HISTORY_S} s"
        return self._time_line(title, "symphony-attainment", "attainment", y_range=(-3, 103))

    def _batch_sizes(self) -> figure:
        title = f"Batches by size (requests), last {RECENT_S} s"
        plot = self._figure(title, "symphony-sizes", 185, y_range=self._most_batches, x_range=self._most_size)
        plot.vbar(
            x="size", width=0.85, bottom="bottom", top="top", fill_color="colour", line_color=None, source=self._sizes
        )
        return plot

    def _gantt(self) -> figure:
        from bokeh.models import HoverTool

        plot = self._figure("GPU timeline by rank", "symphony-timeline", 215, x_range=self._span, y_range=self._ranks)
        plot.quad(
            left="left", right="right", bottom="bottom", top="top", fill_color="colour", fill_alpha="alpha",
            line_color=None, source=self._timeline,
        )  # fmt: skip
        plot.add_tools(HoverTool(tooltips=[("model", "@model"), ("batch", "@size requests")]))
        plot.ygrid.grid_line_color = None
        plot.yaxis.ticker = self._rank_ticks
        self._timeline_title = plot.title
        return plot

    def _left(self) -> figure:
        from bokeh.models import HoverTool, Label, Span

        plot = self._figure(
            "Dispatches within their windows, %", "symphony-windows", 215, x_range=self._span, y_range=(-60, 130)
        )
        for at in (0, 100):
            plot.add_layout(Span(location=at, dimension="width", line_color="#666666", line_width=1))
        plot.scatter("seconds", "at", color="colour", size=6, alpha=0.55, line_color=None, source=self._windows)
        for y, text in ((102, "window closes"), (2, "window opens"), (-50, "early")):
            plot.add_layout(Label(x=6, y=y, x_units="screen", text=text, text_font_size="10px", text_color="#666666"))
        plot.add_tools(
            HoverTool(
                tooltips=[("model", "@model"), ("rule", "@rule"), ("why then", "@reason"), ("window", "@width ms")]
            )
        )
        self._windows_title = plot.title
        return plot

    # Data

    def _show_sizes(self, batches: npt.NDArray[Any], names: dict[int, str]) -> None:
        columns: dict[str, list[Any]] = {name: [] for name in self._sizes.data}
        height: dict[int, int] = {}
        for model in np.unique(batches["model"]).tolist():
            sizes, counts = np.unique(batches["size"][batches["model"] == model], return_counts=True)
            for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
                bottom = height.get(size, 0)
                height[size] = bottom + count
                row = (size, bottom, bottom + count, self._colours[names[model]], names[model])
                for values, value in zip(columns.values(), row, strict=True):
                    values.append(value)
        self._sizes.data = columns
        self._most_batches.end = 1.1 * max(height.values(), default=0) or 10
        self._most_size.end = max([8, *height]) + 0.5

    def _show_timeline(self, batches: npt.NDArray[Any], names: dict[int, str], ranks: dict[int, int], now: int) -> None:
        batches = batches[np.isin(batches["gpu"], list(ranks))]
        rank = np.array([ranks[gpu] for gpu in batches["gpu"].tolist()], float)
        models = [names[i] for i in batches["model"].tolist()]
        self._timeline.data = {
            "left": (batches["start"] - now) / NS_PER_S,
            "right": (batches["end"] - now) / NS_PER_S,
            "bottom": rank - 0.4,
            "top": rank + 0.4,
            "colour": [self._colours[name] for name in models],
            "alpha": _in_turn(batches["gpu"]),
            "model": models,
            "size": batches["size"],
        }
        self._ranks.end = max(ranks.values(), default=0) + 0.5
        most = max(ranks.values(), default=0)
        self._rank_ticks.ticks = list(range(0, most + 1, max(1, math.ceil((most + 1) / 12))))

    def _show_windows(self, batches: npt.NDArray[Any], names: dict[int, str], now: int) -> None:
        width = np.maximum(batches["close"] - batches["open"], 1)
        models = [names[i] for i in batches["model"].tolist()]
        self._windows.data = {
            "seconds": (batches["dispatch"] - now) / NS_PER_S,
            "at": np.clip(100 * (batches["dispatch"] - batches["open"]) / width, -55, 125),
            "width": width / NS_PER_MS,
            "colour": [self._colours[name] for name in models],
            "model": models,
            "reason": [REASONS[i] for i in reasons(batches)],
            "rule": [START_RULES[i] for i in batches["rule"].tolist()],
        }

    def _show_tables(self, overview: dict[str, Any]) -> None:
        models = [_model_cells(m, self._colours[m["name"]]) for m in overview["models"]]
        titles = [*(title for _, title in MODEL_COLUMNS), "rule"]
        self._models.text = table(titles, models, left=1)
        gpus = [_gpu_cells(gpu) for gpu in overview["gpus"]]
        self._gpus.text = table([title for _, title in GPU_COLUMNS], gpus, left=len(GPU_COLUMNS))


def _model_cells(model: dict[str, Any], colour: str) -> list[str]:
    name, *others = map(escape, model_row(model).values())
    rules = rules_text(model)
    first = rules.split(",")[0]  # there is room for one; the others show where the mouse is
    shown = f'<span title="{escape(rules)}">{escape(first)}</span>'
    return [f'<span style="color: {colour}">&#9632;</span> {name}', *others, shown]


def _gpu_cells(gpu: dict[str, Any]) -> list[str]:
    row = gpu_row(gpu)
    share = f"{row.pop('busy')}%"
    rank, *others = map(escape, row.values())
    bar = f"padding: 0 4px; background: linear-gradient(to right, #9CC9E8 {share}, #EFEFEF {share})"
    return [rank, f'<div style="{bar}">{share}</div>', *others]


def table(titles: list[str], rows: list[list[str]], left: int) -> str:
    """An HTML table of cells that are HTML; the first ``left`` columns stand left, as texts do, the others right."""
    line = "padding: 2px 6px; border-bottom: 1px solid #DDDDDD; white-space: nowrap"

    def cells(kind: str, values: list[str]) -> str:
        sides = ["left" if i < left else "right" for i in range(len(values))]
        of = zip(sides, values, strict=True)
        return "".join(f'<{kind} style="{line}; text-align: {side}">{value}</{kind}>' for side, value in of)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<tr>{cells('th', titles)}</tr>"
    return f'<table style="{_STYLE}; width: 100%; border-collapse: collapse">{head}{body}</table>'


def span_of(ends: npt.NDArray[np.int64], now: int) -> float:
    """For how many seconds up to now batches are shown, by when they ended, ns, the oldest first."""
    if len(ends) < MOST_BATCHES:
        return SPANS_S[0]
    covered_s = (now - int(ends[-MOST_BATCHES])) / NS_PER_S
    return next((span for span in SPANS_S if span <= covered_s), SPANS_S[-1])


def _in_turn(gpus: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Opacities of batches that tell each from the next on its GPU."""
    alpha = np.ones(len(gpus))
    for gpu in np.unique(gpus):
        alpha[np.flatnonzero(gpus == gpu)[::2]] = 0.7
    return alpha


def summary(overview: dict[str, Any]) -> str:
    """The line at the top of the page, as HTML."""
    fleets = "".join(f"<br>{escape(line)}" for line in fleet_lines(overview))
    if not overview["models"]:
        return (
            f'<div style="{_STYLE}"><b>No model is deployed.</b> {several(overview["workers"], "worker")} connected. '
            f'Deploy one: <code>Serving(client).deploy("name", model, slo="25ms", example=x)</code>{fleets}</div>'
        )
    goodput = sum(m["goodput_hz"] for m in overview["models"])
    ended = sum(m["ended_hz"] for m in overview["models"])
    busy = sum(g["busy"] for g in overview["gpus"])
    parts = [
        f"<b>{goodput:,.0f}</b> req/s in time",
        f"<b>{percent(goodput / ended if ended else None)}</b> % attained",
        f"<b>{busy:.1f}</b> of <b>{len(overview['gpus'])}</b> GPUs busy",
        several(len(overview["models"]), "model"),
        several(overview["workers"], "worker"),
        several(overview["clients"], "client"),
        f"policy <b>{escape(overview['policy'])}</b>",
    ]
    return f'<div style="{_STYLE}">{" &nbsp;&middot;&nbsp; ".join(parts)}{fleets}</div>'
