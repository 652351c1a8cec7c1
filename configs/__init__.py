"""Recipes, one a file: `python -m bertjax.train --config=NAME`."""
