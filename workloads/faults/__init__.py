"""Makes faults on a cluster of real processes, for the tests and ``symphony soak``."""
