"""Holds the command line ``symphony``, also ``dask symphony`` and ``python -m symphony_dask``.

``main`` is the group of all commands, ``commands`` holds one file a command; the other modules are shared by commands,
also by those of ``autoscale`` and ``workloads``.
"""
