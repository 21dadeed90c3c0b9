"""Load on a live cluster: generators, replay, demo, soak."""
