"""Recipes: the files of configs/ by name, and those of others by path."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.config import Config, ConfigError, closest
from bertjax.config.overrides import with_overrides


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


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Loads a recipe, for Python what `--config=NAME --config.FIELD=VALUE` is for the shell.

    Args:
      name: of a recipe that comes with bertjax, or the path of a .py file with `get_config()`.
      overrides: see `with_overrides`.

    Raises:
      ConfigError: there is no such recipe or field.
    """
    path = recipe_path(name)
    spec = importlib.util.spec_from_file_location(f"recipe_{Path(path).stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}, not a Config")
    return with_overrides(config, overrides or {})


def open_recipe(config: Config | str, overrides: Mapping[str, Any] | None) -> Config:
    """A copy of a recipe, given by name, path or object, with `overrides`; see `load_recipe`."""
    if isinstance(config, str):
        return load_recipe(config, overrides)
    return with_overrides(config, overrides or {})


def _recipe_folder() -> Path:
    """Where bertjax.configs is installed, or configs/ beside an uninstalled checkout."""
    spec = importlib.util.find_spec("bertjax.configs")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).parent.parent.parent / "configs"
