"""Makes and runs workloads: arrivals, trace importers, latency profiles, replay, load generation and benchmarks."""
