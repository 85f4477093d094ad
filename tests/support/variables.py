"""The environment variables that stand for options of the command."""

import functools
from collections.abc import Iterator

import click

from hotplate.cli.flags import settings_of
from hotplate.cli.main import command
from hotplate.cli.options import RunSettings


@functools.cache
def option_variables() -> frozenset[str]:
    """Return the variables of all verbs, and those of a pipeline's keys."""
    verbs = command()
    of_runs = {setting.variable for setting in settings_of(RunSettings) if setting.variable}
    return frozenset((*_variables(verbs), *of_runs))


def _variables(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        named = parameter.envvar or ()
        yield from [named] if isinstance(named, str) else named
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        yield from _variables(below)
