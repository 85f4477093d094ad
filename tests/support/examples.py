"""The code blocks of README and docs/, as they stand there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from textwrap import dedent

from markdown_it import MarkdownIt

from tests.support.paths import ROOT

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True, slots=True)
class Block:
    """A code block: its page, the number of its first line, and the language of its fence; without one, nothing."""

    page: str
    line: int
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """The page and the first line, by which tests name a block."""
        return self.page, self.text.partition("\n")[0]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks(page: str) -> list[Block]:
    """Return the fenced and the indented blocks of a page, in its order."""
    tokens = MarkdownIt("commonmark").parse((ROOT / page).read_text())
    shown = []
    for token in tokens:
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map is not None
        is_fence = token.type == "fence"
        shown.append(Block(page, token.map[0] + 1 + is_fence, token.info, dedent(token.content)))
    return shown


def spans(page: str) -> Iterator[str]:
    """Yield the text between backticks in the prose of a page."""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text()):
        for child in token.children or ():
            if child.type == "code_inline":
                yield " ".join(child.content.split())


def examples(page: str, heading: str = "", language: str = "python") -> list[str]:
    """Return the programs of a page, or of its part between a heading and the next one."""
    text = (ROOT / page).read_text()
    if heading:
        text = re.split(rf"^##+ {heading}$", text, maxsplit=1, flags=re.MULTILINE)[1]
        text = re.split(r"^##+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
