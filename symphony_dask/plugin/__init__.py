"""Connects Symphony with Dask: the scheduler plugin, the worker plugin, and tasks of Dask graphs."""
