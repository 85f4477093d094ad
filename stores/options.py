"""Annotations that make a settings field a flag, an environment variable and a key of a pipeline file."""

from typing import NamedTuple

# The panel of options that few users need; it stands last in the help.
RARE = "Rarely needed"


class Flag(NamedTuple):
    """A field given as a flag and, with *env*, as an environment variable: HOTPLATE_, *prefix* and the name.

    *name* defaults to the field's name, *prefix* to that of the verb. A path is one of this machine; with *urls*, also
    a URL of an fsspec file system.
    """

    help: str
    panel: str | None = None
    name: str | None = None
    env: bool = True
    metavar: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    prefix: str | None = None
    urls: bool = False


class Argument(NamedTuple):
    """A field given by position; *urls* as of a Flag."""

    help: str
    metavar: str
    urls: bool = False
