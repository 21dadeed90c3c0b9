"""Scaling policies tried on traces, under virtual time."""
