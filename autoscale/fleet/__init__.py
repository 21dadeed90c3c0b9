"""Brings a fleet of instances safely to a target number of GPUs."""
