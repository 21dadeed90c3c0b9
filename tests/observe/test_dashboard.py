"""The dashboard's page, ``symphony top`` and the metrics of a cluster under load."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from symphony_dask.backends import Emulated
from symphony_dask.cli.commands.top import top, view
from symphony_dask.client.model import Model
from symphony_dask.client.serving import Serving
from symphony_dask.engine.start_rules import START_RULES
from symphony_dask.observe import dashboard
from symphony_dask.observe.colours import GREY
from tests.helpers.browser import CHROMIUM, HEIGHT, WIDTH, Browser
from tests.helpers.cluster import Cluster, wait_until

pytest.importorskip("bokeh", reason="needs bokeh, of the extra test")
pytest.importorskip("prometheus_client", reason="needs prometheus_client, of the extra test")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")

#: Name, alpha and beta in ms, SLO, requests a second.
MODELS = (
    ("classifier", 4.2, 20.0, "250ms", 110.0),
    ("embedder", 8.8, 28.0, "500ms", 45.0),
    ("detector", 2.4, 72.0, "800ms", 30.0),
)

FIGURES = ("symphony-goodput", "symphony-attainment", "symphony-sizes", "symphony-timeline", "symphony-windows")

_ROWS = "Bokeh.documents[0].get_model_by_name('{}').renderers[0].data_source.get_length()"
_TEXT = "Bokeh.documents[0].get_model_by_name('{}').text"
_BOX = """(() => {
    const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name('%s'));
    const box = view.el.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom];
})()"""


class Load:
    """Requests at the models' rates, which swing by half in half a minute, in a thread of its own."""

    def __init__(self, models: list[Model]) -> None:
        self._models = models
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng, sample, tick_s = np.random.default_rng(1), np.zeros(4, np.float32), 0.02
        start = at = time.monotonic()
        while not self._stop.wait(max(0.0, at - time.monotonic())):
            at += tick_s
            swing = 1 + 0.5 * np.sin((at - start) / 5)
            for model, (*_, rate_hz) in zip(self._models, MODELS, strict=True):
                for _ in range(rng.poisson(rate_hz * swing * tick_s)):
                    model.submit(sample)


@pytest.fixture(scope="module")
def shown() -> Iterator[Serving]:
    """A cluster of four GPUs with a dashboard, and nothing deployed."""
    with Cluster(4, dashboard=True) as cluster, Serving(cluster.client()) as serving:
        wait_until(lambda: len(serving.status()["workers"]) == 4, "four workers on the lane", 60)
        yield serving


@pytest.fixture
def models(shown: Serving) -> Iterator[list[Model]]:
    yield [shown.deploy(name, Emulated(alpha, beta), slo=slo) for name, alpha, beta, slo, _ in MODELS]
    for name, *_ in MODELS:
        shown.undeploy(name)


def link(serving: Serving, page: str) -> str:
    return str(serving.client.dashboard_link).replace("/status", page)


def coloured(picture: Path, box: list[float]) -> int:
    """Pixels inside a box that are not grey."""
    Image = pytest.importorskip("PIL.Image", reason="Pillow is needed to look at the screenshot (comes with bokeh)")
    left, upper, right, lower = (int(value) for value in box)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)[upper:lower, left:right]
    return int(((pixels.max(axis=2) - pixels.min(axis=2)) > 40).sum())


@needs_chromium
def test_the_page_says_what_to_do_while_nothing_is_deployed(shown: Serving, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(link(shown, "/symphony"))
        browser.wait_until("Bokeh.documents.length && Bokeh.documents[0].is_idle")
        text = browser.value(_TEXT.format("symphony-summary"))
        menu = browser.value("[...document.querySelectorAll('.navbar a')].map(a => a.getAttribute('href'))")
        browser.screenshot(tmp_path / "empty.png")
        assert "No model is deployed" in text
        assert "4 workers connected" in text
        assert "symphony" in menu
        assert browser.errors == []
        browser.open(link(shown, "/status"))
        assert browser.wait_until("document.querySelector(\".navbar a[href='symphony']\") !== null")


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 45])
def test_the_page_shows_models_and_gpus_at_work(
    shown: Serving, models: list[Model], tmp_path: Path, seconds: int
) -> None:
    """The pictures are in ``tmp_path``, for people to look at."""
    picture = tmp_path / "dashboard.png"
    with Load(models), Browser(tmp_path / "profile") as browser:
        browser.open(link(shown, "/symphony"))
        browser.wait_until("Bokeh.documents.length && Bokeh.documents[0].is_idle")
        history = "Bokeh.documents[0].get_model_by_name('symphony-goodput').renderers[0].data_source.data.seconds"
        browser.wait_until(f"{history}.length == 3 && {history}[0].length >= {seconds}", seconds + 60)
        for figure in FIGURES:
            browser.wait_until(f"{_ROWS.format(figure)} >= 3")
        browser.screenshot(picture)
        boxes = {figure: browser.value(_BOX % figure) for figure in FIGURES}
        summary = browser.value(_TEXT.format("symphony-summary"))
        tables = [browser.value(_TEXT.format(f"symphony-{what}")) for what in ("models", "gpus")]
        overview = shown.overview()
        assert browser.errors == []
        assert "No model" not in summary
        for name in ("classifier", "embedder", "detector"):
            assert name in tables[0]
        assert re.search(rf"({'|'.join(START_RULES[1:])}) \d+ %", tables[0])
        for address in shown.status()["workers"]:
            assert address in tables[1]
        for figure, box in boxes.items():
            assert coloured(picture, box) > 15, figure  # three seconds of a line are short
            left, upper, right, lower = box
            assert 0 <= left < right <= WIDTH, figure
            assert 0 <= upper < lower <= HEIGHT, figure
        terminal = tmp_path / "top.png"
        _draw_terminal(overview, tmp_path / "top.svg")
        browser.open((tmp_path / "top.svg").as_uri())
        browser.wait_until("document.documentElement.textContent.includes('classifier')")
        browser.screenshot(terminal)
        assert coloured(terminal, [0, 0, WIDTH, HEIGHT]) > 100


@needs_chromium
@pytest.mark.slow
def test_the_one_busy_model_of_eight_is_coloured_has_a_line_and_is_seen_at_once(shown: Serving, tmp_path: Path) -> None:
    """It is deployed last, when the others have taken all colours, and its name is the last one too."""
    names = [f"model-{i}" for i in range(8)]
    deployed = [shown.deploy(name, Emulated(1, 5), slo="2s") for name in names]
    busy, sample, stop = deployed[-1], np.zeros(4, np.float32), threading.Event()

    def ask() -> None:
        while not stop.wait(0.02):
            busy.submit(sample)

    asking = threading.Thread(target=ask)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(link(shown, "/symphony"))
            browser.wait_until("Bokeh.documents.length && Bokeh.documents[0].is_idle")
            asking.start()
            source = "Bokeh.documents[0].get_model_by_name('symphony-goodput').renderers[0].data_source.data"
            browser.wait_until(f"{source}.model.includes('model-7')", 60)
            browser.wait_until(f"({_TEXT.format('symphony-models')}.match(/model-./) || [''])[0] == 'model-7'", 60)
            browser.screenshot(tmp_path / "busy.png")
            at = browser.value(f"{source}.model.indexOf('model-7')")
            colour = browser.value(f"{source}.colour[{at}]")
            table = browser.value(_TEXT.format("symphony-models"))
            assert browser.errors == []
        assert colour != GREY
        rows = re.findall(r"color: (#\w+)\">&#9632;</span> (model-\d)", table)
        assert rows[0] == (colour, "model-7")
        assert [name for _, name in rows[1:]] == names[:-1]
        terminal = CliRunner().invoke(top, ["--scheduler", shown.client.scheduler.address, "--once"]).output
        assert re.findall(r"model-\d", terminal) == ["model-7", *names[:-1]]
    finally:
        stop.set()
        if asking.ident is not None:
            asking.join()
        for name in names:
            shown.undeploy(name)


def _draw_terminal(overview: dict[str, Any], target: Path) -> None:
    from rich.console import Console

    with (target.parent / "top.txt").open("w") as out:
        console = Console(record=True, width=104, file=out)
        console.print(view(overview, "tcp://10.0.0.5:8786"))
    # Without its web font, for which a browser would leave the text out until it has come.
    target.write_text(re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="symphony top"), flags=re.DOTALL))


def test_top_shows_models_and_gpus_once(shown: Serving, models: list[Model]) -> None:
    models[0].submit(np.zeros(4, np.float32)).exception(30)
    address = shown.client.scheduler.address
    found = json.loads(CliRunner().invoke(top, ["--scheduler", address, "--json"]).stdout)
    assert [m["name"] for m in found["models"]] == ["classifier", "embedder", "detector"]
    assert [g["rank"] for g in found["gpus"]] == [0, 1, 2, 3]
    figures = {"rate_hz", "goodput_hz", "attainment", "p50_ns", "p99_ns", "queued", "mean_batch"}
    assert figures <= found["models"][0].keys()
    assert {rule for m in found["models"] for rule in m["rules"]} <= set(START_RULES[1:])
    result = CliRunner().invoke(top, ["--scheduler", address, "--once"])
    assert result.exit_code == 0
    for text in ("classifier", "250ms", "4 GPUs busy", "4 workers", "idle"):
        assert text in result.output


def test_top_says_what_to_do_while_nothing_is_deployed(shown: Serving) -> None:
    result = CliRunner().invoke(top, ["--scheduler", shown.client.scheduler.address, "--once"])
    assert "No model is deployed" in result.output


def scrape(url: str) -> Callable[..., float]:
    """A /metrics page, as a function of a sample's name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    values = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
    return lambda name, **labels: values[name, frozenset(labels.items())]


@pytest.fixture
def patient(shown: Serving) -> Iterator[Model]:
    """A model that has time for its answers on a machine as slow as any: l(b) = b + 5 ms."""
    yield shown.deploy("patient", Emulated(1, 5), slo="2s")
    shown.undeploy("patient")


def test_metrics_count_requests_batches_and_latencies(shown: Serving, patient: Model) -> None:
    for future in patient.map([np.zeros(4, np.float32)] * 40):
        future.exception(30)
    found, m = scrape(link(shown, "/metrics")), {"model": "patient"}
    status = shown.status()["models"]["patient"]
    outcomes = {outcome: found("symphony_model_requests_total", outcome=outcome, **m) for outcome in status["outcomes"]}
    assert outcomes == status["outcomes"]
    assert sum(outcomes.values()) == 40
    answered = outcomes["ok"] + outcomes["late"]
    assert answered > 0
    assert found("symphony_model_latency_seconds_count", **m) == answered
    assert found("symphony_model_latency_seconds_bucket", le="100.0", **m) == answered
    assert found("symphony_model_latency_seconds_bucket", le="0.005", **m) == 0  # l(1) is 6 ms
    assert found("symphony_model_latency_seconds_sum", **m) >= 0.006 * answered
    batches = found("symphony_model_batch_size_count", **m)
    assert batches == status["batches"]
    assert found("symphony_model_batch_size_sum", **m) == answered
    reasons = [found("symphony_model_dispatches_total", reason=r, **m) for r in ("opening", "gpu_free", "early")]
    assert sum(reasons) == found("symphony_model_window_left_ratio_count", **m) == batches
    rules = [found("symphony_model_batch_starts_total", rule=rule, **m) for rule in START_RULES[1:]]
    assert sum(rules) == batches
    assert found("symphony_model_batch_starts_total", rule="packing", **m) > 0
    assert found("symphony_model_execution_seconds_total", **m) >= 0.006 * batches
    assert found("symphony_model_planned_seconds_total", **m) >= 0.006 * batches
    assert found("symphony_model_profile_drift_ratio", gpu_class="cpu", **m) > 0
    for address in shown.status()["workers"]:
        assert found("symphony_worker_control_latency_seconds", worker=address) > 0
    assert found("symphony_clients") >= 1
    assert found("symphony_drains", state="draining") == 0
    assert found("symphony_lane_bytes_total", direction="in") > 0


def test_metrics_of_workers_count_what_their_slots_ran(shown: Serving, patient: Model) -> None:
    ports = shown.client.run_on_scheduler(_http_ports)
    labels = {address: {"worker": address, "slot": "0", "gpu_class": "cpu"} for address in ports}

    def total(name: str) -> float:
        pages = {address: scrape(f"http://127.0.0.1:{port}/metrics") for address, port in ports.items()}
        return sum(page(name, **labels[address]) for address, page in pages.items())

    names = [f"symphony_slot_{name}_total" for name in ("requests", "batches", "execution_seconds")]
    before = [total(name) for name in names]
    for future in patient.map([np.zeros(4, np.float32)] * 20):
        future.exception(30)
    requests, batches, seconds = (total(name) - was for name, was in zip(names, before, strict=True))
    outcomes = shown.status()["models"]["patient"]["outcomes"]
    assert requests == outcomes["ok"] + outcomes["late"]
    assert batches == shown.status()["models"]["patient"]["batches"] > 0
    assert seconds >= 0.006 * batches
    assert total("symphony_slot_failed_requests_total") == 0
    assert total("symphony_slot_models") == 4  # one on each


def _http_ports(dask_scheduler: Any) -> dict[str, int]:
    return {address: worker.services["dashboard"] for address, worker in dask_scheduler.workers.items()}


@pytest.mark.parametrize(("rate_hz", "span_s"), [(10, 10), (60, 10), (61, 5), (120, 5), (500, 1), (10_000, 0.1)])
def test_the_more_batches_there_are_the_shorter_is_the_time_shown(rate_hz: int, span_s: float) -> None:
    now = 10**12
    ends = now - (np.arange(10 * rate_hz)[::-1] + 1) * 10**9 // rate_hz
    assert dashboard.span_of(ends, now) == span_s
    assert (ends > now - span_s * 10**9).sum() <= dashboard.MOST_BATCHES or rate_hz == 10_000


def test_a_scheduler_without_bokeh_has_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed.dashboard.core", None)
    assert dashboard.install(object(), None, dict) is False  # type: ignore[arg-type]


def test_a_scheduler_without_a_dashboard_has_no_page() -> None:
    class Scheduler:
        http_application = None

    assert dashboard.install(Scheduler(), None, dict) is False  # type: ignore[arg-type]
