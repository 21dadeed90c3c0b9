"""Puts load on a live cluster: generators, replay, demo, soak."""
