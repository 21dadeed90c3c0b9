"""OpenTelemetry spans of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from symphony_dask.backends import Emulated
from symphony_dask.client.serving import Serving
from symphony_dask.clock import now_ns
from symphony_dask.dispatcher.request_table import Rows
from symphony_dask.dispatcher.run_log import Flight, ServedModel
from symphony_dask.dispatcher.tracing import Tracing
from symphony_dask.engine.request_kernels import ENTRY
from symphony_dask.errors import BadInput
from symphony_dask.trace import Outcome
from tests.helpers.cluster import Cluster, wait_until

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk, of the extra otel")

MS = 1_000_000
MODEL = ServedModel("resnet", 0, 0, 50 * MS, {})


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The exporter of a provider of this test's own."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def serve(tracing: Tracing, n: int, outcome: Outcome = Outcome.OK) -> int:
    """A batch of n requests that came at t, left at t + 10 ms, ran from 15 to 35 and were back at 40; returns t, ns."""
    t = now_ns()
    entries = np.zeros(n, ENTRY)
    entries["id"], entries["arrival"], entries["deadline"] = np.arange(n), t, t + 50 * MS
    window = (t + 9 * MS, t + 12 * MS)
    flight = Flight(3, MODEL, 1, np.arange(n, dtype=np.int32), t + 10 * MS, window, (0, 0), False, False, 0)
    outcomes, replies = np.full(n, outcome, np.int8), np.full(n, t + 40 * MS)
    tracing.served(flight, entries, outcomes, "tcp://w", t + 15 * MS, t + 35 * MS, replies)
    return t


def test_a_request_is_a_span_with_a_part_for_each_thing_that_happened_to_it(spans: Any) -> None:
    serve(Tracing(1.0), 1)
    *parts, request = spans.get_finished_spans()
    assert request.name == "symphony.request"
    assert request.end_time - request.start_time == 40 * MS
    assert request.attributes["symphony.model"] == "resnet"
    assert request.attributes["symphony.outcome"] == "ok"
    assert request.attributes["symphony.slo_seconds"] == 0.05
    assert request.attributes["symphony.batch"] == 3
    assert request.attributes["symphony.batch_size"] == 1
    assert request.attributes["symphony.window_open_ns"] - request.start_time == 9 * MS
    assert request.status.is_ok or request.status.is_unset
    found = [(p.name, p.start_time - request.start_time, p.end_time - request.start_time) for p in parts]
    assert found == [
        ("symphony.queue", 0, 10 * MS),
        ("symphony.dispatch", 10 * MS, 15 * MS),
        ("symphony.execute", 15 * MS, 35 * MS),
        ("symphony.reply", 35 * MS, 40 * MS),
    ]
    assert {p.parent.span_id for p in parts} == {request.context.span_id}


def test_a_share_of_the_requests_is_traced_across_batches(spans: Any) -> None:
    tracing = Tracing(0.25)
    for n in (3, 3, 3, 3):
        serve(tracing, n)
    requests = [s.attributes["symphony.request"] for s in spans.get_finished_spans() if s.name == "symphony.request"]
    assert requests == [0, 1, 2]  # the first, fifth and ninth of twelve


def test_what_was_not_answered_in_time_is_an_error(spans: Any) -> None:
    tracing = Tracing(1.0)
    serve(tracing, 1, Outcome.LATE)
    t = np.array([now_ns() - 60 * MS])
    tracing.ended(MODEL, Rows(np.array([7]), np.array([0]), t, t + 50 * MS, np.array([4])), Outcome.DROPPED)
    late, dropped = (s for s in spans.get_finished_spans() if s.name == "symphony.request")
    assert [late.status.description, dropped.status.description] == ["late", "dropped"]
    assert not late.status.is_ok
    assert dropped.end_time - dropped.start_time >= 60 * MS
    assert "symphony.batch" not in dropped.attributes


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(BadInput, match=r"symphony\.tracing"):
        Tracing(share)


@pytest.mark.slow
def test_a_scheduler_that_traces_emits_the_spans_of_what_it_serves(tmp_path: Path) -> None:
    file = tmp_path / "spans"
    preload = '["tests.helpers.spans_to_file", "symphony_dask"]'
    settings = {"DASK_SYMPHONY__TRACING": "1.0", "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": preload}
    with (
        Cluster(1, preload=False, settings=settings | {"SPANS_FILE": str(file)}) as cluster,
        Serving(cluster.client()) as serving,
    ):
        model = serving.deploy("m", Emulated(1, 5), slo="2s")
        assert model.submit(np.array([1.0])).exception(30) is None
        wait_until(lambda: '"symphony.request"' in file.read_text(), "the span of the request")
        serving.undeploy("m")
    spans = {span["name"]: span for span in map(json.loads, file.read_text().splitlines())}
    assert set(spans) == {f"symphony.{name}" for name in ("request", "queue", "dispatch", "execute", "reply")}
    assert spans["symphony.request"]["attributes"]["symphony.model"] == "m"
    assert spans["symphony.execute"]["parent_id"] == spans["symphony.request"]["context"]["span_id"]
