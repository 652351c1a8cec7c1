"""The Markdown pages: links lead somewhere, and the words are those of docs/style.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")})
# Results are rendered from measurements, and words.md quotes the old text.
OTHERS_WORDS = ("docs/results/", "docs/decisions/words.md", "docs/style.md")
WRITTEN = [page for page in PAGES if not page.relative_to(ROOT).as_posix().startswith(OTHERS_WORDS)]
DIALECT = {
    r"(^|[.!?] |\*\*)Of ": 'a sentence begins with "Of"',
    r"\b(rows|bytes|tokens|one|once|GB|MB) a (step|second|device|chip|host|row|line|core)\b": (
        '"per", not "a"'
    ),
    r"\b(goes|going|go) on\b": '"resume" or "continue"',
    r"\b(in peace|theirs|whoever|for ever|to the bit)\b": "see docs/style.md",
}


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", WRITTEN, ids=name)
@pytest.mark.parametrize("pattern", DIALECT)
def test_pages_keep_to_the_style(page, pattern):
    lines = without_code(page.read_text()).splitlines()
    found = [line for line in lines if re.search(pattern, line)]
    assert not found, DIALECT[pattern]
