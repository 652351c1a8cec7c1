"""Checkpoints: sealed, verified, in folders and buckets; and what makes a workdir loadable."""
