"""Holds the rules of scheduling: windows, who goes first, which GPU may run what, and how fast GPUs are."""
