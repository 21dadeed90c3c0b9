"""Holds the commands for traces, simulation, comparison and measurement, one file each.

``trace`` and ``bench`` are groups, a folder each; ``analysis`` holds what reads recorded runs.
"""
