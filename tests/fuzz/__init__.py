"""Hostile bytes at every entrance, from a seed: `python -m tests.fuzz --seconds 600`."""
