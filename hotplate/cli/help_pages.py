"""The help of the command, its groups and its verbs, as text of at most 80 columns off a terminal.

Typer's own help shows Python's types, as `<list[Path]>`, and breaks examples so that a shell does not take them.
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from hotplate.cli.terminal import out

# A narrower terminal breaks the lines itself.
MIN_WIDTH = 48
MAX_WIDTH = 100
INDENT = "  "
# A longer name stands on a line of its own.
NAME_WIDTH = 26
NO_BREAK = "\N{NO-BREAK SPACE}"
EXAMPLE = re.compile(r"(?P<label>.*?): (?P<command>hotplate .*)")
HEADING_STYLE = "bold"
NAME_STYLE = "bold cyan"


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a panel lists: an argument, an option or a verb, by its name as shown."""

    panel: str
    name: str
    text: str


def print_help(command: TyperCommand | TyperGroup, context: Any) -> None:  # noqa: ANN401 -- a context of typer
    """Print usage, description with examples, arguments, options by panel, and verbs."""
    width = max(MIN_WIDTH, min(out.width, MAX_WIDTH))
    out.print(_usage(command, context))
    _print_paragraphs(command.help, width)
    for panel, entries in _panels(command, context).items():
        out.print(Text(f"\n{panel}:", HEADING_STYLE))
        for entry in entries:
            _print_entry(entry, width)
    _print_paragraphs(command.epilog, width)


def _usage(command: TyperCommand | TyperGroup, context: Any) -> Text:  # noqa: ANN401 -- a context of typer
    words = ["[OPTIONS]"]
    if isinstance(command, TyperGroup):
        words.append("VERB ...")
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument):
            name = _argument_name(parameter)
            words.append(name if parameter.required else f"[{name}]")
    return Text.assemble(("Usage: ", HEADING_STYLE), " ".join((context.command_path, *words)))


def _print_paragraphs(text: str | None, width: int) -> None:
    """Print paragraphs, each after an empty line; a command to copy is continued by a backslash."""
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        joined = " ".join(paragraph.split())
        example = EXAMPLE.fullmatch(joined)
        if example is not None:
            out.print("", _shown_example(example["label"], example["command"], width), sep="\n")
        elif joined:
            out.print("", textwrap.indent(textwrap.fill(joined, width - len(INDENT)), INDENT), sep="\n")


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


def _panels(command: TyperCommand | TyperGroup, context: Any) -> dict[str, list[_Entry]]:  # noqa: ANN401 -- of typer
    """Return the entries of each panel, in the order of their first entries, after arguments and other options."""
    panels: dict[str, list[_Entry]] = {"Arguments": [], "Options": []}
    for entry in _entries(command, context):
        panels.setdefault(entry.panel, []).append(entry)
    return {panel: entries for panel, entries in panels.items() if entries}


def _entries(command: TyperCommand | TyperGroup, context: Any) -> Iterator[_Entry]:  # noqa: ANN401 -- a context of typer
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperArgument):
            yield _Entry("Arguments", _argument_name(parameter), parameter.help or "")
        elif isinstance(parameter, TyperOption):
            yield _Entry(parameter.rich_help_panel or "Options", _option_name(parameter), _option_help(parameter))
    if isinstance(command, TyperGroup):
        for name, verb in command.commands.items():
            first_paragraph = inspect.cleandoc(verb.help or "").partition("\n\n")[0]
            yield _Entry("Verbs", name, first_paragraph)


def _argument_name(argument: TyperArgument) -> str:
    return f"{argument.metavar}..." if argument.nargs == -1 else str(argument.metavar)


def _option_name(option: TyperOption) -> str:
    """Return the names of an option, and those that turn it off, with its metavar."""
    names = "/".join((*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {option.metavar}"


def _option_help(option: TyperOption) -> str:
    """Return the help of an option, with its default, which `Setting` gives as a text."""
    text = option.help or ""
    if option.required:
        return f"{text} [required]"
    return f"{text} [default: {option.show_default}]" if isinstance(option.show_default, str) else text


def _print_entry(entry: _Entry, width: int) -> None:
    """Print a name, and beside it, or below a long one, its help."""
    name = Text.assemble(INDENT, (entry.name, NAME_STYLE))
    indent = " " * (len(INDENT) + NAME_WIDTH)
    unbroken = entry.text.replace("[default: ", f"[default:{NO_BREAK}")
    wrapped = textwrap.wrap(unbroken, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    lines = [line.replace(NO_BREAK, " ") for line in wrapped]
    if lines and len(name) + 2 <= len(indent):
        name.append(lines.pop(0)[len(name) :])
    out.print(name, *lines, sep="\n")
