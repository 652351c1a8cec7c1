"""Python paths of 0.1.0 that have moved: they work until 0.3.0, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# Modules that the documentation of 0.1.0 named.
MOVED = {
    "bertjax.bucket": "bertjax.storage.bucket",
    "bertjax.data.blocks": "bertjax.data.corpus.blocks",
    "bertjax.data.duplicates": "bertjax.data.corpus.duplicates",
    "bertjax.data.masking": "bertjax.data.stream.masking",
    "bertjax.data.reader": "bertjax.data.stream.reader",
    "bertjax.data.store_writer": "bertjax.data.store.store_writer",
    "bertjax.data.tokenizer": "bertjax.data.tokenizers.tokenizer",
    "bertjax.data.vocabulary": "bertjax.data.tokenizers.vocabulary",
    "bertjax.interop": "bertjax.weights",
    "bertjax.interop.formats": "bertjax.weights.formats",
    "bertjax.interop.hugging_face": "bertjax.weights.hugging_face",
    "bertjax.interop.weights": "bertjax.weights.weights",
    "bertjax.models.attention_kernel": "bertjax.models.kernels.attention_kernel",
    "bertjax.models.partition": "bertjax.parallel.partition",
    "bertjax.training.checkpoint": "bertjax.checkpoints.checkpoint",
    "bertjax.training.objectives": "bertjax.objectives.pretraining",
    "bertjax.training.sharding": "bertjax.parallel.sharding",
    "bertjax.validation": "bertjax.config.checks",
}


class _Finder:
    """Finds a module by the path that it had.

    It does not derive from a class in `importlib.abc`, whose import takes 5 ms.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        loader: Any = self
        return importlib.machinery.ModuleSpec(name, loader) if name in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        _warn(spec.name, MOVED[spec.name])
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the import system set ours


def install() -> None:
    """Makes the paths of MOVED importable."""
    # First, because an old folder that still has byte code would count as a package.
    sys.meta_path.insert(0, _Finder())


def forward(package: str, module: str, *names: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that was a module: names that are now in one of its modules.

    Args:
      package: dotted path.
      module: of the package, where the names are.
      names: those in the documentation of 0.1.0.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", f"{package}.{module}.{name}")
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    return get


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old path goes with 0.3.0", DeprecationWarning, 3)
