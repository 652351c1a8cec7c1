"""Experiments with bertjax: each a folder with its recipes, its commands and its page."""
