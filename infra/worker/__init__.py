"""Holds the programs of a worker's instance: boot, TLS material, watchdog, spot watcher."""
