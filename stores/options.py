"""How a field of settings is set by those who run a program: the annotation that makes it a flag, a variable and a key.

It says what the field is, for the help; the command, `hotplate.cli.options`, makes flags of it. It stands here because
the settings of every room have it.
"""

from typing import NamedTuple


class Flag(NamedTuple):
    """How the command shows a field: its help, panel, name if that is not the field's, and whether `env` sets it.

    The variable begins with HOTPLATE_ and *prefix*, else that of its verbs.
    """

    help: str
    panel: str | None = None
    name: str | None = None
    env: bool = True
    metavar: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    prefix: str | None = None


class Argument(NamedTuple):
    """How the command shows a field that is given by its place: its help, and what stands for it there."""

    help: str
    metavar: str
