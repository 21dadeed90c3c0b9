"""Holds the commands that scale a fleet of GPU instances, one file each: ``symphony up`` is in ``up``."""
