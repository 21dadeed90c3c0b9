"""Decides which batch goes when to which GPU: numpy and numba, no clock, no I/O, no asyncio, no Dask."""
