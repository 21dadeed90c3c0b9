"""Runs the engine under a virtual clock, on a fleet that may change."""
