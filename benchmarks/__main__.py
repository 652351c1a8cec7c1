"""`python -m benchmarks NAME [options]` starts a benchmark; without a name it lists them."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path


def main() -> None:
    """Starts the one that is named."""
    known = benchmarks()
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("python -m benchmarks NAME [options], python -m benchmarks NAME --help\n")
        width = max(map(len, known))
        print("\n".join(f"{name:{width}}  {line}" for name, line in known.items()))
    elif name in known:
        importlib.import_module(f"benchmarks.{name}").BENCHMARK.main(argv)
    else:
        raise SystemExit(f"no benchmark {name}; there are {', '.join(known)}")


def benchmarks() -> dict[str, str]:
    """The first line of each module that has a BENCHMARK, without importing any."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        if "BENCHMARK" in names:
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


if __name__ == "__main__":
    main()
