"""Makes fleets into Dask cluster objects, and scales any Dask cluster by ``cluster.adapt``."""
