"""The commands of the workloads."""
