"""Decides how many GPUs there should be, by pure functions of what was seen."""
