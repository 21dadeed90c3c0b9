"""Imports, makes and changes traces of requests."""
