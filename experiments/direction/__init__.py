"""Masked and left-to-right pre-training of the same network: see README.md."""
