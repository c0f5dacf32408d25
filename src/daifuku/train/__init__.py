"""Training: the loop, its optimiser and checkpoints, and the recipe of the built-in model."""
