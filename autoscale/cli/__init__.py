"""The commands of the autoscaler."""
