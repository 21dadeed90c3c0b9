"""Holds the commands that serve models and watch a cluster, one file each: ``symphony apply`` is in ``apply``."""
