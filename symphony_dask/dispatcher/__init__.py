"""Holds requests, forms batches and sends each to a GPU slot. It knows asyncio and sockets, no Dask."""
