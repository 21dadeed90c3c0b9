"""Launches and ends instances: on EC2, or as processes on this machine."""
