"""Worker processes that do not run the user's script again."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes that are spawned in the `with` block do not import `__main__`.

    They run functions of bertjax alone. So a script may call `build_store` without
    `if __name__ == "__main__":`, and workers of a command do not import the command.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
