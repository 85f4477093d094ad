"""The command `hotplate`: its verbs, and the exit after an error."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import click
from click.exceptions import Exit, NoArgsIsHelpError

from hotplate.base.exit_codes import INTERRUPTED
from hotplate.cli import wants_json
from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import out, print_error, print_json
from hotplate.stores.change_warnings import collected_warnings
from hotplate.stores.options import Flag

# polars' allocator keeps freed memory during numpy's peak: 60 of 290 MB.
_POLARS_MEMORY = "dirty_decay_ms:0,muzzy_decay_ms:0"
# Module and attribute of verbs and groups, in the order of the help.
_VERBS = {
    "demo": ("serve", "demo"),
    "train": ("train", "train"),
    "publish": ("publish", "publish"),
    "run": ("run", "run"),
    "import": ("publish", "import_lists"),
    "serve": ("serve", "serve"),
    "lookup": ("serve", "lookup"),
    "plan": ("plan", "plan"),
    "cosmos-emulator": ("bench", "cosmos_emulator"),
    "evaluate": ("evaluate", "app"),
    "releases": ("releases", "app"),
    "users": ("users", "app"),
    "store": ("store", "app"),
    "keys": ("keys", "app"),
    "events": ("events", "app"),
    "bench": ("bench", "app"),
}
# They print no result, but `run`, which prints JSON.
WITHOUT_JSON = {"demo", "run", "serve"}


def command(arguments: Sequence[str] = ()) -> Verbs:
    """Return the command `hotplate`, with the verb that *arguments* begin with, else with all verbs.

    Only the modules of these verbs are imported, since all take 0.2 s, and none for `--version`. A verb is a function,
    or a group of verbs, as `releases`.
    """
    app = Verbs(
        function=hotplate,
        invoke_without_command=True,
        help="Keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast."
        "\n\nExample: hotplate demo",
        epilog="The environment sets options, too: HOTPLATE_STORE is --store, wherever a verb has it.",
    )
    requested = [name for name in arguments[:1] if name in _VERBS] or list(_VERBS)
    is_only_version = "--version" in arguments and {*arguments} <= {"--version", "--json"}
    if is_only_version:
        requested = []
    for name in requested:
        module, attribute = _VERBS[name]
        verb = getattr(import_module(f"hotplate.cli.{module}"), attribute)
        if isinstance(verb, Verbs):
            app.add_command(verb, name)
        else:
            app.add(verb, name, has_json=name not in WITHOUT_JSON)
    return app


def hotplate(
    *,
    show_version: Annotated[bool, Flag("Print the version and stop.", name="version", env=False)] = False,
    as_json: Annotated[
        bool, Flag("With --version: also whether the fast lane is compiled.", name="json", env=False)
    ] = False,
) -> None:
    """Take the options before any verb."""
    context = click.get_current_context()
    if show_version:
        out.print(version("hotplate"))
        if as_json:
            from hotplate.serve.connections.fast_lane import lane_state  # loads the service

            print_json({"version": version("hotplate"), "fast_lane": lane_state()})
        raise Exit
    if context.invoked_subcommand is None:
        raise NoArgsIsHelpError(context)


def with_default_verb(arguments: Sequence[str]) -> list[str]:
    """Insert the verb `lists` after `evaluate` if no verb follows."""
    verb, *options = arguments or [""]
    if verb == "evaluate" and options and options[0] not in ("lists", "report", "compare", "--help"):
        return [verb, "lists", *options]
    return list(arguments)


def _require_utf_8(arguments: Sequence[str]) -> None:
    """Raise click.BadParameter for an argument that is not UTF-8: neither polars, LMDB nor JSON takes such a path."""
    for argument in arguments:
        if argument.encode(errors="replace").decode() != argument:
            raise click.BadParameter(f"{argument!r} has bytes that are not UTF-8")


def _run(arguments: list[str]) -> object:
    """Run a verb, and return its exit code, or None."""
    app = command(arguments)
    try:
        with app.make_context("hotplate", arguments) as context:
            return app.invoke(context)
    except Exit as exiting:
        return exiting.exit_code
    except NoArgsIsHelpError as error:
        out.print_line(error.message)
        raise click.UsageError("say what to do; the help has been printed") from None


def main() -> None:
    """Run the command on the process's arguments, and exit.

    An expected error prints one sentence and sets the exit code; a defect prints its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a locale without the characters of titles or paths

    os.environ.setdefault("_RJEM_MALLOC_CONF", _POLARS_MEMORY)  # read when polars is loaded

    # Print warnings of stores; `serve` and `demo` replace this handler when they configure logging.
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("hotplate: %(message)s"))
    warnings.addFilter(logging.Filter("hotplate.stores"))
    logging.getLogger().addHandler(warnings)

    arguments = with_default_verb(sys.argv[1:])
    try:
        _require_utf_8(arguments)
        with collected_warnings():
            code = _run(arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 -- `print_error` raises unexpected ones again
        code = print_error(error, as_json=wants_json())
    sys.exit(code if isinstance(code, int) else 0)
