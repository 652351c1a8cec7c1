"""Fine-tunes checkpoints of pre-training runs on tasks, and shows how the scores grow."""
