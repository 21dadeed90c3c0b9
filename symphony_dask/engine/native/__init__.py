"""Compiles the engine, and keeps its arrays and machine code."""
