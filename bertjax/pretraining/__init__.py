"""Pre-training as a job of the training loop."""
