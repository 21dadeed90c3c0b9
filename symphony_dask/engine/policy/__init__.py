"""What the scheduling policy is made of: windows, who goes first, which GPU may run what, and how fast GPUs are."""
