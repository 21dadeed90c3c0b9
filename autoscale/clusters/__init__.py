"""Fleets as Dask cluster objects, and policies for ``cluster.adapt``."""
