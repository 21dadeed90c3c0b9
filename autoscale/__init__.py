"""Load-proportional scaling of the GPU fleet."""
