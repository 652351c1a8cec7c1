"""All that is to be measured on a GPU, in one command that ends in time and prints its table last.

    python -m benchmarks.gpu --output=FOLDER [--minutes=8]

Runs these one after the other, each in a process of its own, the ones that matter most first, and begins none that cannot
end in time: whether the attention kernels are right (against NumPy in float64, masks to the bit); training steps of BASE
and LARGE beside transformers, with XLA's attention and with the kernels; LARGE at 512 packed; where the time of BASE's step
goes; and how long one attention takes on either path. Writes one JSON file each into FOLDER and `gpu.md`, which is
printed. Imports neither TensorFlow nor bertjax's command line: jax, flax, optax, torch and transformers are enough.
On a CPU the same runs at a small size, to try the script.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
      name: of the file that it writes.
      arguments: module of benchmarks/ and its flags.
      seconds: that it is expected to take, start and compiles included.
    """

    name: str
    arguments: str
    seconds: int


STEP = "train_step --attention=xla,pallas --peer=transformers --rounds=4 --seconds=1.5 --case="
ON_GPU = (
    Part("attention_check", "attention_kernel --check", 40),
    Part("base_128", STEP + "base:128:512", 140),
    Part("large_128", STEP + "large:128:256", 170),
    Part("large_512", STEP + "large:512:64", 170),
    Part("large_512_packed", STEP + "large:512:64:packed", 170),
    Part("base_128_profile", "step_profile --case=base:128:512", 60),
    Part("attention_time", "attention_kernel --time", 60),
    Part("base_512", STEP + "base:512:128", 140),
)
SMALL = "train_step --peer=transformers --peer_eager --rounds=2 --seconds=1 --case="
ON_CPU = (
    Part("attention_check", "attention_kernel --check", 40),
    Part("tiny_128", SMALL + "tiny:128:8", 40),
    Part("small_512_packed", SMALL + "small:512:2:packed", 90),
    Part("tiny_128_profile", "step_profile --case=tiny:128:8", 40),
)


def main() -> None:
    """Measures what the time allows and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="all in all")
    args = parser.parse_args()
    ends = time.monotonic() + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    # This process never opens the GPU: whoever does takes most of its memory.
    ask = "import jax; d = jax.devices()[0]; print(d.platform); print(d.device_kind, jax.__version__, sep=', jax ')"  # noqa: E501
    command = [sys.executable, "-c", ask]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    platform, device = answer.strip().split("\n")
    said = {
        part.name: measure(part, args.output, ends)
        for part in (ON_GPU if platform == "gpu" else ON_CPU)
    }
    text = page(device, said, args.output)
    (args.output / "gpu.md").write_text(text)
    print(text)


def measure(part: Part, folder: Path, ends: float) -> str:
    """Runs a part if it can end in time; returns what became of it."""
    left = ends - time.monotonic()
    if left < part.seconds:
        return f"left out: {left:.0f} s were left, it takes about {part.seconds}"
    print(f"== {part.name}: {part.arguments}", flush=True)
    target = folder / f"{part.name}.json"
    target.unlink(missing_ok=True)
    module, *flags = part.arguments.split()
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags, f"--output={target}"]
    started = time.monotonic()
    try:
        code = subprocess.run(command, timeout=left, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {left:.0f} s, when the time was up"
    took = time.monotonic() - started
    return f"{took:.0f} s" if code == 0 else f"failed with exit code {code} after {took:.0f} s"


def page(device: str, said: dict[str, str], folder: Path) -> str:
    """What became of each part, and the tables of what was measured."""
    from benchmarks import (
        step_profile,
        train_step,
    )  # these import jax, which takes no GPU by itself

    results = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in said
        if (folder / f"{name}.json").exists()
    }
    text = [f"# {device}", "", *(f"- {name}: {what}" for name, what in said.items()), ""]
    for rows in results.get("attention_check", {}).get("checked", {}).values():
        passed = sum(row["passes"] for row in rows["rows"])
        text += [f"attention kernels: {passed} of {len(rows['rows'])} checks pass", ""]
    for rows in results.get("attention_time", {}).get("timed", {}).values():
        text += [
            f"one attention, {row['shape']}, {row['path']}: {1e3 * row['seconds']:.3f} ms"
            for row in rows["rows"]
        ]
    steps: list[dict[str, Any]] = []
    for name, part in results.items():
        if name.endswith("_profile"):
            text += [*map(step_profile.table, part), ""]
        elif isinstance(part, list):
            steps += part
    return "\n".join([*text, train_step.table(steps), ""])


if __name__ == "__main__":
    main()
