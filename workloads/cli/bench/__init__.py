"""Holds the commands of ``symphony bench``, one file each."""
