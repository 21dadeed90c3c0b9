"""Runs the engine on several cores: model threads and a rank thread, as the paper has them."""
