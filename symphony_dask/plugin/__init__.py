"""All that knows Dask: the scheduler plugin, the worker plugin, and tasks of Dask graphs."""
