"""Decides and keeps what is deployed where: deployments, placement, drains, the state file."""
