"""Measures what performance claims rest on, each figure beside what it is compared to."""
