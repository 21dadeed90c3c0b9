"""Holds the commands of ``symphony trace``, one file each."""
