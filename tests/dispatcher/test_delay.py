from __future__ import annotations

from symphony_dask.dispatcher.delay import Latency


def test_a_latency_is_smoothed_as_tcp_does() -> None:
    latency = Latency()
    latency.add(800)
    assert (latency.mean_ns, latency.deviation_ns) == (800, 400)
    latency.add(1600)
    assert (latency.mean_ns, latency.deviation_ns) == (900, 500)
