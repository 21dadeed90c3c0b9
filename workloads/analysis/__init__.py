"""Tells what recorded runs show: reports, causes, plans."""
