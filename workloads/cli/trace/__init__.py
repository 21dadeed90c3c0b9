"""The commands of ``symphony trace``, one file each."""
