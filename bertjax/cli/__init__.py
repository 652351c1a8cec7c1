"""How a command line becomes a Config, and an error an exit code."""

from bertjax.moved import forward

__getattr__ = forward(__name__, "recipes", "load_recipe")
