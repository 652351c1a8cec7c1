"""Fills the generated parts of docs/results/*.md from the files of results.

    python -m benchmarks.pages [--plots]

A page is Markdown, written by hand but for its blocks. A block begins with `<!-- begin NAME
ARGUMENTS -->` and ends with `<!-- end -->`; what stands between them is replaced by what the
function NAME of `BLOCKS` returns. A block of several lines is a table or a section; one of a single
line stands within a sentence or a cell. Files are looked for in docs/results, then in
benchmarks/results. `--plots` also draws the pictures that are made of these files. Pages whose
blocks are as they should be are not written, so a second run changes nothing.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable

from benchmarks.harness import ROOT
from benchmarks.tables import (
    base_on_a_cpu,
    blimp,
    fine_tuning,
    measurements,
    packing,
    plan,
    pretraining_helps,
    runs,
    train_step,
    values,
)

PAGES = ROOT / "docs" / "results"
BLOCKS: dict[str, Callable[..., str]] = {
    "value": values.value,
    "count": values.count,
    "mean": values.mean,
    "rate": values.rate,
    "log": values.log,
    "run": runs.summary,
    "evaluations": runs.evaluations,
    "packing": packing.evaluations,
    "packing_error": packing.standard_error,
    "base_on_a_cpu": base_on_a_cpu.starts,
    "blimp": blimp.scores,
    "blimp_runs": blimp.runs,
    "fine_tuning_summary": fine_tuning.summary,
    "fine_tuning_seeds": fine_tuning.seeds,
    "pretraining_helps": pretraining_helps.scores,
    "pretraining_helps_on_gpu": pretraining_helps.on_gpu,
    "plans": plan.present,
    "plans_earlier": plan.earlier,
    "plans_changes": plan.changes,
    "plans_rise": plan.rise,
    "train_step": train_step.devices,
    "measurements": measurements.files,
    "fields": measurements.fields,
}
PLOTS = {"train_step.png": train_step.draw, "packing.png": packing.draw}
_BLOCK = re.compile(r"<!-- begin (?P<call>[^\n]*?) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


class PageError(Exception):
    """A page has a block that cannot be filled."""


def main(argv: list[str] | None = None) -> None:
    """Fills the blocks of all pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plots", action="store_true", help="draw the pictures, too")
    args = parser.parse_args(argv)
    for path in sorted(PAGES.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        filled = render(text, path.name)
        print(f"{path.relative_to(ROOT)}: {'written' if filled != text else 'as it should be'}")
        if filled != text:
            path.write_text(filled, encoding="utf-8")
    for name, draw in PLOTS.items() if args.plots else ():
        draw(PAGES / name)
        print(f"{(PAGES / name).relative_to(ROOT)}: drawn")


def render(text: str, name: str) -> str:
    """The page with its blocks filled.

    Args:
      text: of the page.
      name: of the page, for errors.

    Raises:
      PageError: a block has no end or names no function, its files do not have what it asks for,
        or its value begins a line.
    """

    def fill(found: re.Match[str]) -> str:
        call = found["call"]
        if "<!-- begin" in found["text"]:
            raise PageError(
                f"{name}: the block `{call}` has no <!-- end --> before the next begins"
            )
        content = _call(call, name)
        # Markdown takes a line that begins with a comment for HTML, and no text.
        if "\n" not in content and text[: found.start()].endswith("\n"):
            raise PageError(f"{name}: put a word of the sentence before the block `{call}`")
        return f"<!-- begin {call} -->{content}<!-- end -->"

    filled = _BLOCK.sub(fill, text)
    if filled.count("<!-- begin") != filled.count("<!-- end -->"):
        raise PageError(f"{name}: a block has no <!-- end -->, or an end no begin")
    return filled


def _call(call: str, name: str) -> str:
    function, *arguments = shlex.split(call)
    if function not in BLOCKS:
        raise PageError(f"{name}: no block `{function}`; there are {', '.join(BLOCKS)}")
    try:
        content = BLOCKS[function](*arguments)
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise PageError(
            f"{name}: the block `{call}` cannot be filled: {type(error).__name__}: {error}"
        ) from error
    return f"\n\n{content}\n\n" if "\n" in content else content


if __name__ == "__main__":
    main()
