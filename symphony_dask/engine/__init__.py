"""The scheduling engine: numpy and numba, no clock, no I/O, no asyncio, no Dask."""
