"""Shows people and Prometheus a running cluster."""
