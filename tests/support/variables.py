"""The environment variables that stand for options of the command."""

import functools
from collections.abc import Iterator
from typing import cast

import typer
from typer.core import TyperCommand, TyperGroup

from hotplate.cli.flags import settings_of
from hotplate.cli.main import command
from hotplate.cli.options import RunSettings


@functools.cache
def option_variables() -> frozenset[str]:
    """Return the variables of all verbs, and those of a pipeline's keys."""
    verbs = cast("TyperGroup", typer.main.get_command(command()))  # of an app of several verbs it makes a group
    of_runs = {setting.variable for setting in settings_of(RunSettings) if setting.variable}
    return frozenset((*_variables(verbs), *of_runs))


def _variables(command: TyperCommand | TyperGroup) -> Iterator[str]:
    for parameter in command.params:
        named = parameter.envvar or ()
        yield from [named] if isinstance(named, str) else named
    for below in command.commands.values() if isinstance(command, TyperGroup) else ():
        yield from _variables(below)  # type: ignore[arg-type]  # typer creates only these classes
