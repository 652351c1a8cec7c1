"""Question answering (SQuAD v1.1): examples to windows, logits to answers."""
