"""Benchmarks that back performance claims, each run beside what it is compared to."""
