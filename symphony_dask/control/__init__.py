"""What is deployed where: deployments, placement, drains, the state file."""
