"""Tries scaling policies on traces, under virtual time."""
