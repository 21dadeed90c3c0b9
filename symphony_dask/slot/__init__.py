"""Loads models into GPU slots and runs batches there."""
