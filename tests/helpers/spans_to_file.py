"""A preload of Dask's scheduler that writes OpenTelemetry spans, a JSON object a line, to the file $SPANS_FILE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def dask_setup(scheduler: Any) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    out = Path(os.environ["SPANS_FILE"]).open("w", buffering=1)  # noqa: SIM115 - until the process ends
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
