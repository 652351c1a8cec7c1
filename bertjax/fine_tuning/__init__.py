"""Fine-tuning as a job of the training loop."""
