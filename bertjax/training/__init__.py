"""The run: objective, step, optimizer, sharding, checkpoints and the loop around them."""
