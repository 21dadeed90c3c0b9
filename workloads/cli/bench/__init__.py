"""The commands of ``symphony bench``, one file each."""
