"""A GPU slot loads models and runs batches."""
