"""Weights of other formats and our tree, both ways; and what parameters start from."""
