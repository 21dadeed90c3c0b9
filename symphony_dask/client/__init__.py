"""The user's side: deploy models on the cluster of a Dask ``Client``, and submit requests to them."""
