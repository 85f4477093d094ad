"""Annotations that make a settings field a flag, an environment variable and a key of a pipeline file.

`hotplate.cli.flags` reads them; they are here because settings of all rooms use them.
"""

from typing import NamedTuple


class Flag(NamedTuple):
    """A field given as a flag. *name* defaults to the field's name; *env*: whether HOTPLATE_… sets it, too.

    The variable is HOTPLATE_ and *prefix*, by default that of the verb.
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
    """A field given by position."""

    help: str
    metavar: str
