"""Compares schedulers side by side: goodput, GPUs needed, and the bound."""
