"""The markup of Wiki-40B, `tfds:wiki40b/LANGUAGE:SPLIT`.

    _START_ARTICLE_            titles of articles and sections are left out
    Title of the article
    _START_SECTION_
    Title of the section
    _START_PARAGRAPH_          what follows is text
    A paragraph._NEWLINE_The next one.

Source: Guo et al., Wiki-40B: Multilingual Language Model Dataset, LREC 2020.
"""

from __future__ import annotations

_TITLES = ("_START_ARTICLE_", "_START_SECTION_")
_PARAGRAPH = "_START_PARAGRAPH_"
_NEWLINE = "_NEWLINE_"


def wiki40b_text(text: str) -> str:
    """The paragraphs of an article, one line each."""
    lines = []
    title = False  # whether the next line is one
    for line in text.split("\n"):
        mark = next((mark for mark in (*_TITLES, _PARAGRAPH) if line.startswith(mark)), "")
        rest = line.removeprefix(mark)
        if mark in _TITLES:
            title = not rest.strip()  # else the title is on the line of its mark
        elif title and not mark:
            title = False
        else:
            title = False
            lines += rest.split(_NEWLINE)
    return "\n".join(line for line in lines if line.strip())
