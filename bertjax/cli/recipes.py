"""Recipes: the files of configs/ by name, and those of others by path."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bertjax.config import Config, ConfigError, closest


def recipe_names() -> list[str]:
    """Names of the recipes that come with bertjax."""
    return sorted(p.stem for p in _recipe_folder().glob("*.py") if p.stem != "__init__")


def recipe_path(name: str) -> str:
    """Returns the file of a recipe, given by name or by path.

    Raises:
      ConfigError: there is no such recipe.
    """
    path = Path(name) if name.endswith(".py") else _recipe_folder() / f"{name}.py"
    if not path.is_file():
        raise ConfigError(
            f"--config={name}: "
            + (
                f"no such file (looked in {Path.cwd()})"
                if name.endswith(".py")
                else f"no recipe of that name; {closest(name, recipe_names())}"
            )
        )
    return str(path)


def load_recipe(name: str) -> Config:
    """Loads a recipe by name or path; for notebooks, tests and other programs."""
    path = recipe_path(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a Config")
    return config


def _recipe_folder() -> Path:
    """Where bertjax.configs is installed, or configs/ beside an uninstalled checkout."""
    spec = importlib.util.find_spec("bertjax.configs")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parent.parent.parent / "configs"
