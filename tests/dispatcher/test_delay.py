from __future__ import annotations

from symphony_dask.dispatcher.delay import Latency, RecentDelay


def test_a_latency_is_smoothed_as_tcp_does() -> None:
    latency = Latency()
    latency.add(800)
    assert (latency.mean_ns, latency.deviation_ns) == (800, 400)
    latency.add(1600)
    assert (latency.mean_ns, latency.deviation_ns) == (900, 500)


def test_a_recent_delay_is_what_half_and_nine_tenths_of_the_last_samples_are_below() -> None:
    delay = RecentDelay()
    assert (delay.typical_ns, delay.bound_ns) == (0, 0)
    for sample in range(100):
        delay.add(sample, now_ns=sample)
    assert (delay.least_ns, delay.typical_ns, delay.bound_ns) == (68, 83, 95)  # of 68 to 99


def test_single_samples_that_stray_change_nothing() -> None:
    delay = RecentDelay()
    for n in range(32):
        delay.add(10**12 if n % 11 == 0 else -(10**12) if n == 5 else 50, now_ns=n)
    assert (delay.typical_ns, delay.bound_ns) == (50, 50)


def test_no_estimate_is_older_than_ten_seconds() -> None:
    delay = RecentDelay()
    for n in range(3):
        delay.add(100, now_ns=n * 10**9)
    delay.forget(12 * 10**9)
    assert (delay.typical_ns, delay.bound_ns) == (100, 100)
    delay.forget(12 * 10**9 + 1)
    assert (delay.typical_ns, delay.bound_ns) == (0, 0)
