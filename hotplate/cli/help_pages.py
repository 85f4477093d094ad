"""The help of the command, its groups and its verbs, as text of at most 80 columns off a terminal.

click's own help breaks examples so that a shell does not take them.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click

from hotplate.cli.terminal import out

# A narrower terminal breaks the lines itself.
MIN_WIDTH = 48
MAX_WIDTH = 100
INDENT = "  "
# A longer name stands on a line of its own.
NAME_WIDTH = 26
NO_BREAK = "\N{NO-BREAK SPACE}"
EXAMPLE = re.compile(r"(?P<label>.*?): (?P<command>hotplate .*)")
# The panel of arguments, and that of options without another one.
ARGUMENTS = "Arguments"
OPTIONS = "Options"


class Entry(NamedTuple):
    """What a panel lists: an argument, an option or a verb, by its name as shown."""

    panel: str
    name: str
    text: str


def help_page(usage: str, description: str, entries: Sequence[Entry], end: str) -> str:
    """Return usage, description with examples, arguments, options by panel, and verbs, for `click.echo`."""
    width = max(MIN_WIDTH, min(out.width, MAX_WIDTH))
    panels: dict[str, list[Entry]] = {ARGUMENTS: [], OPTIONS: []}
    for entry in entries:
        panels.setdefault(entry.panel, []).append(entry)
    panels[OPTIONS].append(Entry(OPTIONS, "--help", "Show this message and exit."))

    lines = [f"{click.style('Usage:', bold=True)} {usage}", *_paragraphs(description, width)]
    for panel, listed in panels.items():
        if listed:
            lines += ["", click.style(f"{panel}:", bold=True)]
        for entry in listed:
            lines += _entry_lines(entry, width)
    return "\n".join([*lines, *_paragraphs(end, width)])


def _paragraphs(text: str, width: int) -> Iterator[str]:
    """Yield paragraphs, each after an empty line; a command to copy is continued by a backslash."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        joined = " ".join(paragraph.split())
        example = EXAMPLE.fullmatch(joined)
        if example is not None:
            yield from ("", _shown_example(example["label"], example["command"], width))
        elif joined:
            yield from ("", textwrap.indent(textwrap.fill(joined, width - len(INDENT)), INDENT))


def _shown_example(label: str, command: str, width: int) -> str:
    first = f"{INDENT}{label}: "
    if len(first) + len(command) > width:
        first = f"{first.rstrip()}\n{INDENT * 2}"
    lines = textwrap.wrap(
        command,
        width - len(" \\") - len(INDENT * 2),
        subsequent_indent=INDENT * 3,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return first + " \\\n".join(lines)


def _entry_lines(entry: Entry, width: int) -> Iterator[str]:
    """Yield a name, and beside it, or below a long one, its text."""
    indent = " " * (len(INDENT) + NAME_WIDTH)
    unbroken = entry.text.replace("[default: ", f"[default:{NO_BREAK}")
    wrapped = textwrap.wrap(unbroken, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    lines = [line.replace(NO_BREAK, " ") for line in wrapped]
    name = INDENT + click.style(entry.name, bold=True, fg="cyan")
    if len(entry.name) + 2 <= NAME_WIDTH:
        name += lines.pop(0)[len(INDENT) + len(entry.name) :]
    yield from (name, *lines)
