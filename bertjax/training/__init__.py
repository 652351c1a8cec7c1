"""The run: objective, step, optimiser, sharding, checkpoints and the loop around them."""
