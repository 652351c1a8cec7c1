"""Conversion between other formats of weights and bertjax, and initial parameters."""
