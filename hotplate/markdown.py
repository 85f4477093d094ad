"""Tables of Markdown pages that a verb of the Makefile writes between two marks."""

from collections.abc import Iterable, Sequence

END = "<!-- up to here -->\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page_with(page: str, text: str, verb: str) -> str:
    """Return *page* with *text* between the marks of `make VERB`; ValueError if it has none."""
    begin = f"<!-- written by make {verb} -->\n"
    before, mark, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the page has no lines {begin.strip()} and {END.strip()}")
    return f"{before}{begin}{text}{END}{after}"
