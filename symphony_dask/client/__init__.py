"""Deploys models on the cluster of a Dask ``Client`` and submits requests to them: the user's side."""
