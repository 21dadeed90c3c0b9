"""How many GPUs there should be: pure functions of what was seen."""
