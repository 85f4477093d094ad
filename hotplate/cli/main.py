"""The command `hotplate`: its verbs, and how an error ends it."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import out, print_error

# The allocator of polars keeps what was freed for a while, but numpy allocates right after: of 290 MB that is 60 MB.
_POLARS_MEMORY = "dirty_decay_ms:0,muzzy_decay_ms:0"
# Verbs, in the order of the help, with their modules and functions; and the modules that have verbs of their own.
_VERBS = {
    "demo": ("serve", "demo"),
    "train": ("train", "train"),
    "publish": ("publish", "publish"),
    "run": ("run", "run"),
    "import": ("publish", "import_lists"),
    "serve": ("serve", "serve"),
    "lookup": ("serve", "lookup"),
    "plan": ("plan", "plan"),
    "cosmos-emulator": ("cosmos_emulator", "cosmos_emulator"),
}
_GROUPS = ("evaluate", "releases", "users", "store", "keys", "events", "bench")


def command(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the command with all verbs, or with the one that *arguments* begin with: to load all takes 0.1 s."""
    wanted = [name for name in arguments[:1] if name in _VERBS or name in _GROUPS] or [*_VERBS, *_GROUPS]
    app = Verbs(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast."
        "\n\nExample: hotplate demo",
        epilog="Options are also read from the environment, as the help of each verb says.",
    )
    app.callback()(hotplate)
    for name in wanted:
        module, function = _VERBS.get(name, (name, "app"))
        found = getattr(import_module(f"hotplate.cli.{module}"), function)
        if name in _VERBS:
            app.command(name)(found)
        else:
            app.add_typer(found, name=name)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(version("hotplate"))
        raise typer.Exit


def hotplate(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take the options that stand before any verb."""


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command with the verb `lists` of `evaluate`, which may be left out."""
    verb, *rest = arguments or [""]
    left_out = verb == "evaluate" and rest and rest[0] not in ("lists", "report", "compare", "--help")
    return [verb, "lists", *rest] if left_out else list(arguments)


def main() -> None:
    """Run the command; an expected error ends it with one sentence and its exit code, a defect with its traceback."""
    os.environ.setdefault("_RJEM_MALLOC_CONF", _POLARS_MEMORY)  # polars reads it once, when it is loaded
    logging.getLogger().addHandler(logging.NullHandler())  # verbs speak for themselves; `serve` sets its log up
    waiting = logging.StreamHandler()
    waiting.setFormatter(logging.Formatter("hotplate: %(message)s"))
    # What is waited for, or may yet be lost.
    for name in ("lifecycle", "publication", "transfer", "redis"):
        logging.getLogger(f"hotplate.stores.{name}").addHandler(waiting)
    arguments = spelled_out(sys.argv[1:])
    try:
        code = command(arguments)(args=arguments, prog_name="hotplate", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 -- `print_error` raises again what is not expected
        code = print_error(error, as_json="--json" in sys.argv or bool(os.environ.get("HOTPLATE_JSON")))
    sys.exit(code if isinstance(code, int) else 0)
