"""Named entities: examples to rows, logits to tags."""
