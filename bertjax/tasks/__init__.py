"""Fine-tuning tasks: examples → features, predictions → official metrics."""
