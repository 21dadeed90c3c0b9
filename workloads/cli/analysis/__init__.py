"""Holds the commands that read recorded or simulated runs, one file each."""
