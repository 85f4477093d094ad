"""Names in backticks in docstrings and comments exist: in code, in a string, as a module, or in VOCABULARY."""

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

ROOMS = ("bench", "hotplate", "offline", "serve", "stores")
# Names of other programs, and of what code builds at run time.
VOCABULARY = {"py", "pyx", "ps", "column_1"}
SPAN = re.compile(r"`+([^`\n]+)`+")
NAME = re.compile(r"[A-Za-z_][\w.]*(?:\(\))?")


def modules() -> Iterator[Path]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if not any(each.is_symlink() for each in (path, *path.parents)):
                yield path


def names_and_prose(path: Path) -> tuple[set[str], list[str]]:
    """Return the names and words of a module's code, and its docstrings and comments."""
    names, prose, begins = {*path.relative_to(ROOT).with_suffix("").parts}, list[str](), True
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and begins):
                prose.append(token.string)
            else:
                names.update(re.findall(r"\w+", token.string))
            if token.type not in {tokenize.COMMENT, tokenize.NL}:
                begins = token.type in {tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    return names, prose


def test_names_in_docstrings_and_comments_exist() -> None:
    found = {path: names_and_prose(path) for path in modules()}
    known = VOCABULARY.union(*(names for names, _ in found.values()))
    stale = [
        f"{path.relative_to(ROOT)}: {span}"
        for path, (_, prose) in found.items()
        for text in prose
        for span in SPAN.findall(text)
        if NAME.fullmatch(span) and not known.issuperset(span.removesuffix("()").rstrip(".").split("."))
    ]
    assert stale == []
