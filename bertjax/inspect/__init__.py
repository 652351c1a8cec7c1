"""Checks of a corpus or a store."""
