"""Faults on a cluster of real processes, as the tests and ``symphony soak`` make them."""
