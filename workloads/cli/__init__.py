"""The commands for traces, simulation, comparison and measurement, one file each: ``symphony demo`` is in ``demo``.

``trace`` and ``bench`` are groups, a folder each; ``analysis`` holds what reads recorded runs.
"""
