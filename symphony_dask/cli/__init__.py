"""``symphony``, also as ``dask symphony``."""
