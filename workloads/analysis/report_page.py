"""Writes reports of runs as one HTML page that needs no network: a table, and the figures of all runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from workloads.analysis.report import OTHERS
from workloads.analysis.svg import COLOURS, DASHES, REST, Chart, legend

Report = dict[str, Any]

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:24px auto;max-width:1560px;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}
h2{font-size:18px;margin:30px 0 2px}
h3{font-size:15px;margin:6px 0}
p{margin:2px 0 8px;max-width:100ch;color:#444}
table{border-collapse:collapse;margin:10px 0;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}
th:first-child,td:first-child{text-align:left}
thead th{border-bottom:2px solid #888}
.runs{display:grid;gap:8px 26px}
.figure{min-width:0}
.figure>svg{width:100%;height:auto;max-width:760px;display:block}
svg text{font:12px system-ui,sans-serif;fill:#333}
svg .small{font-size:11px;fill:#555}
svg .grid{stroke:#e6e6e6}
svg .axis{stroke:#666}
svg .mark{stroke:#555;stroke-dasharray:3 3}
.badge{display:inline-block;border:1px solid #555;border-radius:4px;padding:0 7px;font-size:13px;font-weight:400;
margin-left:8px;background:#f2f2f2}
.legend{display:flex;flex-wrap:wrap;gap:2px 8px;margin:4px 0 2px}
.legend button{font:13px system-ui,sans-serif;border:0;background:none;padding:2px 4px;display:flex;gap:6px;
align-items:center;cursor:pointer;color:inherit}
.legend svg{width:30px;height:10px}
.faded{opacity:.12}
.scroll{overflow-x:auto}
"""

#: A click on a legend's entry fades all other series of its section; a second click brings them back.
_SCRIPT = """
document.addEventListener("click", function (event) {
  var entry = event.target.closest("[data-legend]");
  if (!entry) return;
  var section = entry.closest("section"), on = entry.classList.toggle("chosen");
  section.querySelectorAll("[data-legend]").forEach(function (e) { if (e !== entry) e.classList.remove("chosen"); });
  section.querySelectorAll("[data-series]").forEach(function (e) {
    e.classList.toggle("faded", on && e.dataset.series !== entry.dataset.legend);
  });
});
"""

_CAUSE_COLOURS = {"late": COLOURS[1], "dropped": COLOURS[3], "other": REST}


def page(reports: Sequence[Report]) -> str:
    """The HTML text for what ``report.report`` gave for each run; their names must differ."""
    kinds = " and ".join(dict.fromkeys(r["label"] for r in reports))
    title = f"symphony report: {', '.join(r['name'] for r in reports)}"
    models = list(dict.fromkeys(m for r in reports for m in r["shown_models"] if m != OTHERS))
    styles = {m: (COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i, m in enumerate(models)}
    if any(OTHERS in r["shown_models"] for r in reports):
        styles[OTHERS] = (REST, "")
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>All figures are <b>{escape(kinds)}</b>. Times in figures count from a run's first arrival. "
        "Point at a line or a bar for its values; click an entry of a legend to see it alone.</p>",
        _table(reports),
        _models_table(reports),
        _section(
            "Latency",
            "Share of all requests that were answered within a time; what is missing to 100 % was never answered. "
            "Dotted lines: the SLOs.",
            reports,
            [_latency(reports)],
            _runs_legend(reports),
        ),
        _section(
            "SLO attainment over time",
            "Share of the requests that arrived at a time and were answered by their deadline.",
            reports,
            [_over_time(r, reports, styles, "attainment") for r in reports],
            _legend(styles),
        ),
        _section(
            "Goodput over time",
            "Requests answered by their deadline, by time of arrival. Grey: what was offered to all models.",
            reports,
            [_over_time(r, reports, styles, "goodput_hz") for r in reports],
            _legend(styles),
        ),
        _section(
            "Batch sizes",
            "Batches by the number of requests in them.",
            reports,
            [_sizes(r, reports) for r in reports],
        ),
        _section(
            "GPU timeline",
            "What each GPU ran, coloured by model.",
            reports,
            [_gantt(r, styles) for r in reports],
            _legend(styles, boxes=True),
        ),
        _section(
            "Window use",
            "When batches left, from the opening of their schedulable window. Left of 0 they left early, as policies "
            "do that start where a GPU is idle.",
            reports,
            [_windows(r, reports) for r in reports],
        ),
        _section(
            "Requests not in time, by cause",
            "The first cause that holds, as far as the recorded tables tell.",
            reports,
            [_causes(r) for r in reports],
        ),
        _cost(reports),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _name(r: Report) -> str:
    return f'{escape(r["name"])}<span class="badge">{escape(r["label"])}{", partial" if r["partial"] else ""}</span>'


def _section(title: str, says: str, reports: Sequence[Report], figures: Sequence[str], key: str = "") -> str:
    heads = [_name(r) for r in reports] if len(figures) == len(reports) else ["all runs"]
    slug = title.split(",")[0].lower().replace(" ", "-")
    cells = "".join(
        f'<div class="figure" id="{slug}-{i}"><h3>{head}</h3>{figure}</div>'
        for i, (head, figure) in enumerate(zip(heads, figures, strict=True))
    )
    columns = min(len(figures), 3)
    return (
        f"<section><h2>{escape(title)}</h2><p>{says}</p>{key}"
        f'<div class="runs" style="grid-template-columns:repeat({columns},minmax(0,1fr))">{cells}</div></section>'
    )


def _legend(styles: dict[str, tuple[str, str]], boxes: bool = False) -> str:
    return legend([(name, colour, "" if boxes else dash) for name, (colour, dash) in styles.items()])


def _run_style(i: int) -> tuple[str, str]:
    return COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]


def _runs_legend(reports: Sequence[Report]) -> str:
    return legend([(f"{r['name']} ({r['label']})", *_run_style(i)) for i, r in enumerate(reports)])


def figure(value: float | None, form: str = ",.1f") -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None else format(value, form)


def _table(reports: Sequence[Report]) -> str:
    rows: list[tuple[str, Callable[[Report], str]]] = [
        (
            "what it is",
            lambda r: escape((r["says"] or r["label"]) + (f"; partial: {r['partial']}" if r["partial"] else "")),
        ),
        ("policy", lambda r: escape(str(r["policy"] or "–"))),
        ("length, s", lambda r: figure(r["summary"]["span_s"], ",.2f")),
        ("requests", lambda r: figure(r["summary"]["requests"], ",")),
        ("offered, requests/s", lambda r: figure(r["summary"]["offered_hz"])),
        ("goodput, requests/s", lambda r: figure(r["summary"]["goodput_hz"])),
        ("SLO attainment", lambda r: figure(r["summary"]["attainment"], ".3%")),
        ("late / dropped", lambda r: f"{r['summary']['late']:,} / {r['summary']['dropped']:,}"),
        (
            "rejected / failed / cancelled",
            lambda r: " / ".join(f"{r['summary'][k]:,}" for k in ("rejected", "failed", "cancelled")),
        ),
        ("latency p50 / p99, ms", lambda r: f"{figure(r['summary']['p50_ms'])} / {figure(r['summary']['p99_ms'])}"),
        ("mean batch", lambda r: figure(r["summary"]["mean_batch"], ",.2f")),
        ("busy GPUs / used", lambda r: f"{r['summary']['busy_gpus']:,.2f} / {r['summary']['gpus_used']:,}"),
        ("GPU-hours", lambda r: figure(r["cost"]["gpu_hours"], ",.4g")),
        ("cost, USD", lambda r: figure(r["cost"]["usd"], ",.4g")),
    ]
    heads = "".join(f"<th>{_name(r)}</th>" for r in reports)
    lines = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{cell(r)}</td>' for r in reports)}</tr>" for name, cell in rows
    )
    warnings = "".join(
        f"<p><b>{escape(r['name'])}</b>: "
        + ("the run goes on or was killed; these are the figures so far. " if not r["closed"] else "")
        + (f"{r['lost_rows']:,} rows never reached the disk." if r["lost_rows"] else "")
        + "</p>"
        for r in reports
        if not r["closed"] or r["lost_rows"]
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead>{lines}</table></div>{warnings}'


def _models_table(reports: Sequence[Report]) -> str:
    most = 12
    heads = ("run", "model", "SLO, ms", "requests", "attainment", "goodput, req/s", "p50, ms", "p99, ms", "mean batch")
    lines = []
    for r in reports:
        for m in r["by_model"][:most]:
            cells = (
                escape(r["name"]), escape(m["model"]), figure(m["slo_ms"], ",.4g"), f"{m['requests']:,}",
                figure(m["attainment"], ".3%"), figure(m["goodput_hz"]), figure(m["p50_ms"]), figure(m["p99_ms"]),
                figure(m["mean_batch"], ",.2f"),
            )  # fmt: skip
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        if len(r["by_model"]) > most:
            lines.append(f"<tr><td>{escape(r['name'])}</td><td>{len(r['by_model']) - most:,} more</td></tr>")
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return f'<h2>Models</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(lines)}</table></div>'


def _latency(reports: Sequence[Report]) -> str:
    slos = sorted({m["slo_ms"] for r in reports for m in r["by_model"] if m["slo_ms"]})
    ends = [p["ms"] for r in reports for p in r["latency"][-1:]]
    # A tail far beyond the SLO would press the rest of the curve flat.
    high = min(max(ends, default=1.0), 4 * max(slos)) if slos else max(ends, default=1.0)
    chart = Chart(x=(0, 1.03 * max(high, max(slos, default=0.0))), y=(0, 1), x_title="latency, arrival to reply, ms",
                  y_title="share of requests", percent=True, width=760, height=330)  # fmt: skip
    for row, slo in enumerate(slos[:4]):
        chart.upright(slo, f"SLO {slo:.4g} ms", row)
    for i, r in enumerate(reports):
        colour, dash = _run_style(i)
        points = [(0.0, 0.0), *((p["ms"], p["share"]) for p in r["latency"])]
        chart.line(points, colour=colour, dash=dash, series=f"{r['name']} ({r['label']})", step=True)
    return chart.text()


def _over_time(r: Report, reports: Sequence[Report], styles: dict[str, tuple[str, str]], key: str) -> str:
    longest = max(each["summary"]["span_s"] for each in reports)
    rows = r["over_time"]["rows"]
    if key == "attainment":
        known = [row[key] for each in reports for row in each["over_time"]["rows"] if row[key] is not None]
        low = min(known, default=0.0)
        base = 0.0 if low < 0.5 else 0.5 if low < 0.9 else 0.9 if low < 0.99 else 0.98
        chart = Chart(x=(0, longest), y=(base, 1), x_title="time, s", y_title="SLO attainment", percent=True)
    else:
        top = max(max(_offered(each).values(), default=1.0) for each in reports)
        chart = Chart(x=(0, longest), y=(0, 1.05 * top), x_title="time, s", y_title="goodput, requests/s")
        chart.line(sorted(_offered(r).items()), colour="#BBBBBB", series="offered to all models")
    for model, (colour, dash) in styles.items():
        points = [(row["t_s"], row[key]) for row in rows if row["model"] == model]
        chart.line(points, colour=colour, dash=dash, series=model)
    return chart.text()


def _offered(r: Report) -> dict[float, float]:
    found: dict[float, float] = {}
    for row in r["over_time"]["rows"]:
        found[row["t_s"]] = found.get(row["t_s"], 0.0) + row["offered_hz"]
    return found


def _sizes(r: Report, reports: Sequence[Report]) -> str:
    largest = max((s["size"] for each in reports for s in each["batch_sizes"]), default=1)
    most = max((_share(s, each) for each in reports for s in each["batch_sizes"]), default=1.0)
    chart = Chart(
        x=(0.4, largest + 0.6),
        y=(0, 1.05 * most),
        x_title="requests in a batch",
        y_title="share of batches",
        percent=True,
    )
    for s in r["batch_sizes"]:
        title = f"{s['batches']:,} batches of {s['size']}: {_share(s, r):.1%}, {s['requests']:,} requests"
        chart.box((s["size"] - 0.4, s["size"] + 0.4), (0, _share(s, r)), colour=COLOURS[0], series="", title=title)
    return chart.text()


def _share(s: dict[str, Any], r: Report) -> float:
    return s["batches"] / sum(each["batches"] for each in r["batch_sizes"])


def _gantt(r: Report, styles: dict[str, tuple[str, str]]) -> str:
    t = r["timeline"]
    gpus = t["gpus"]
    chart = Chart(x=(t["from_s"], t["to_s"]), y=(-0.7, max(len(gpus) - 0.3, 0.3)), x_title="time, s", y_title="",
                  y_names=[f"GPU {g}" for g in gpus], height=max(150, min(620, 70 + 24 * len(gpus))))  # fmt: skip
    row = {g: i for i, g in enumerate(gpus)}
    for b in t["batches"]:
        colour, _ = styles.get(b["model"], (REST, ""))
        title = f"GPU {b['gpu']}: {b['size']} of {b['model']}, {b['start_s']:.4f} to {b['end_s']:.4f} s"
        at = row[b["gpu"]]
        chart.box((b["start_s"], b["end_s"]), (at - 0.38, at + 0.38), colour=colour, series=b["model"], title=title)
    notes = []
    if t["cut"]:
        notes.append(
            f"the first {len(t['batches']):,} batches from {t['from_s']:.3g} s on; --from and --seconds choose others"
        )
    if t["gpus_left_out"]:
        notes.append(f"{t['gpus_left_out']:,} GPUs of higher rank not shown")
    if not t["batches"]:
        notes.append("no batch ran in this part of the run")
    return chart.text() + (f"<p>{escape('; '.join(notes).capitalize())}.</p>" if notes else "")


def _windows(r: Report, reports: Sequence[Report]) -> str:
    uses = [each["window_use"] for each in reports]
    edges = [(h["at_ms"], h["at_ms"] + u["bin_ms"]) for u in uses for h in u["histogram"]]
    low, high = min((e[0] for e in edges), default=-1.0), max((e[1] for e in edges), default=1.0)
    use = r["window_use"]
    total = sum(h["batches"] for h in use["histogram"])
    if not total:
        return "<p>No batch of this run has a window.</p>"
    most = max(
        (h["batches"] / sum(g["batches"] for g in u["histogram"]) for u in uses for h in u["histogram"]), default=1.0
    )
    chart = Chart(x=(min(low, 0), max(high, 0)), y=(0, 1.05 * most), x_title="dispatch after the window's opening, ms",
                  y_title="share of batches", percent=True)  # fmt: skip
    for h in use["histogram"]:
        share = h["batches"] / total
        title = f"{h['at_ms']:.2f} to {h['at_ms'] + use['bin_ms']:.2f} ms: {h['batches']:,} batches, {share:.1%}"
        chart.box((h["at_ms"], h["at_ms"] + use["bin_ms"]), (0, share), colour=COLOURS[2], series="", title=title)
    chart.upright(0, "opening")
    parts = ", ".join(f"{use[k] / total:.1%} {words}" for k, words in (
        ("before", "before the opening"), ("within", "within the window"), ("after", "after its closing")))  # fmt: skip
    return chart.text() + f"<p>{parts}.</p>"


def _causes(r: Report) -> str:
    bars = [
        (kind, row["meaning"], row["requests"]) for kind in ("late", "dropped") for row in r["causes"][kind]
    ] + [("other", kind, n) for kind, n in r["causes"]["other"].items() if n]  # fmt: skip
    if not bars:
        return f"<p>All {r['summary']['requests']:,} requests were answered in time.</p>"
    names = [f"{meaning}" if kind == "other" else f"{kind}: {meaning}" for kind, meaning, _ in bars][::-1]
    most = max(n for _, _, n in bars)
    chart = Chart(x=(0, 1.5 * most), y=(-0.6, len(bars) - 0.4), x_title="requests", y_title="", y_names=names,
                  height=60 + 30 * len(bars), width=720, left=352)  # fmt: skip
    for i, (kind, meaning, n) in enumerate(reversed(bars)):
        share = n / r["summary"]["requests"]
        title = f"{meaning}: {n:,} requests"
        chart.box((0, n), (i - 0.34, i + 0.34), colour=_CAUSE_COLOURS[kind], series="", title=title)
        chart.note(n, i, f"{n:,} ({share:.2%})")
    return chart.text()


def _cost(reports: Sequence[Report]) -> str:
    lines = []
    for r in reports:
        for row in r["cost"]["rows"]:
            name = row["gpu_class"] or "unknown"
            known = row["rented_as"] or f"no price known: give --price {name}=USD"
            cells = (
                escape(r["name"]),
                escape(name),
                f"{row['gpus']:,}",
                f"{row['gpu_hours']:,.4g}",
                escape(known),
                figure(row["usd"], ",.4g"),
            )
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        million = r["cost"]["usd_per_million_good"]
        if million is not None:
            lines.append(
                f"<tr><td>{escape(r['name'])}</td><td colspan=4>for a million requests in time</td>"
                f"<td>{million:,.4g}</td></tr>"
            )
    heads = "".join(f"<th>{h}</th>" for h in ("run", "GPU class", "GPUs", "GPU-hours", "rented as", "USD"))
    return (
        "<section><h2>Cost</h2><p>GPU-hours from a GPU's readiness to its leaving, each at its part of the instance's "
        f"price ({escape(reports[0]['cost']['basis'])}).</p>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>{"".join(lines)}</table></div></section>'
    )
