"""The corpus that every machine has: the documentation of the Python installation itself.

The docstrings of the standard library (parsed from source, nothing is imported) and the language
reference behind `help()`: about 2 MB of English. No text is shipped and nothing is downloaded.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

EMBEDDED = "embedded:python"
_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}

_ROLE = re.compile(r":[a-z]+(?::[a-z]+)*:`~?!?([^`]*)`")  # :class:`Path`
_QUOTED = re.compile(r"(``|`|\*\*|\*)(?=\S)([^`*]*?\S)\1")  # ``code``, *emphasis*
_ITEM = re.compile(r"(?:[-*+•]|\(?\d+[.)])\s+")
_WORD = re.compile(r"[(\"'‘“]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?)\"'’”]*")


def embedded_documents() -> Iterator[str]:
    """Yields documents, one line per paragraph; always the same for one installation.

    There is one document per module of the standard library, in the order of their paths, then one
    per topic of `help()`. Repeated paragraphs are left out, so no training document contains a
    held-out paragraph verbatim.
    """
    seen: set[str] = set()
    for texts in (*_module_docstrings(), *_topics()):
        paragraphs = []
        for text in texts:
            for paragraph in _prose(text):
                if paragraph not in seen:
                    seen.add(paragraph)
                    paragraphs.append(paragraph)
        if len(paragraphs) > 1:  # a single one makes no sentence pair
            yield "\n".join(paragraphs)


def _module_docstrings() -> Iterator[list[str]]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if _EXCLUDED.intersection(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old modules
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # not Python of this version: templates, say
        yield [
            docstring
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and (docstring := ast.get_docstring(node))
        ]


def _topics() -> Iterator[list[str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # left out of some small installations
        return
    for name in sorted(topics):
        yield [topics[name]]


def _prose(text: str) -> Iterator[str]:
    """Paragraphs of running text, without markup; code, tables and headings are left out."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if ">>>" in block or "::=" in block:
            continue
        paragraph: list[str] = []
        for line in block.split("\n"):
            item = _ITEM.match(line.strip())
            if item and paragraph:
                yield from _if_prose(" ".join(paragraph))
                paragraph = []
            paragraph.append(line.strip()[item.end() if item else 0 :])
        yield from _if_prose(" ".join(paragraph))


def _if_prose(paragraph: str) -> Iterator[str]:
    paragraph = _QUOTED.sub(r"\2", _ROLE.sub(r"\1", paragraph))
    paragraph = " ".join(
        re.sub(r"[-=~*^_#]{4,}", " ", paragraph).replace("::", ":").replace("`", "").split()
    )
    words = paragraph.split()
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    if len(words) >= 3 and plain >= 0.7 * len(words):
        yield paragraph
