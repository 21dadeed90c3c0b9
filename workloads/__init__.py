"""Workloads: arrivals, trace importers, latency profiles, replay, load generation and benchmarks."""
