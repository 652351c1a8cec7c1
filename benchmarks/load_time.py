"""How long `import bertjax` and `bertjax.load` take, in processes of their own.

    python -m benchmarks.load_time MODEL [MODEL ...]

MODEL is whatever `bertjax.load` takes. Each measurement is a new process with warm files: the clock and the processor's
seconds of `import bertjax`, of `import jax` after it, and of loading one model after that. The least of several counts.
Writes benchmarks/results/load_time.json.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark

PROCESSES = 6
CODE = """
import json, sys, time
found, last = {}, (time.perf_counter(), time.process_time())
def ends(part):
    global last
    now = time.perf_counter(), time.process_time()
    found[part] = {"seconds": now[0] - last[0], "cpu_seconds": now[1] - last[1]}
    last = now
import bertjax
ends("import bertjax")
import jax
ends("import jax")
bertjax.load(sys.argv[1])
ends("load")
found["tensorflow_imported"] = "tensorflow" in sys.modules
print(json.dumps(found))
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("models", nargs="+", help="a workdir or a Hugging Face folder")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures each model."""
    return {"models": {Path(model).name: measure_model(model) for model in args.models}}


def measure_model(model: str) -> dict[str, Any]:
    """The least seconds of each part over several processes."""
    runs = []
    for _ in range(PROCESSES):
        command = [sys.executable, "-c", CODE, model]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append(json.loads(output))
    parts = ("import bertjax", "import jax", "load")
    return {
        **{p: {u: round(min(r[p][u] for r in runs), 3) for u in runs[0][p]} for p in parts},
        "tensorflow_imported": any(run["tensorflow_imported"] for run in runs),
    }


BENCHMARK = Benchmark(measure, "load_time.json", options, device="elsewhere")

if __name__ == "__main__":
    BENCHMARK.main()
