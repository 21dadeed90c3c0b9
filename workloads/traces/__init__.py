"""Traces of requests: imported, synthetic, and changed."""
