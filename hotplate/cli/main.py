"""The command `hotplate`: its verbs, and how an error ends it."""

import logging
import os
import sys
from typing import Annotated

import typer

from hotplate.cli import (
    bench,
    cosmos_emulator,
    demo,
    drill,
    evaluate,
    import_lists,
    keys,
    lookup,
    models,
    plan,
    publish,
    releases,
    run,
    serve,
    store,
    train,
)
from hotplate.cli.terminal import out, print_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast.\n\n"
    "Example: hotplate demo",
    epilog="Every option is also read from the environment, as its help says.",
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(publish.publish)
app.command()(run.run)
app.command("import")(import_lists.import_lists)
app.command()(serve.serve)
app.command()(lookup.lookup)
app.command()(plan.plan)
app.command()(drill.drill)
app.command()(cosmos_emulator.cosmos_emulator)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(models.app, name="models")
app.add_typer(releases.app, name="releases")
app.add_typer(store.app, name="store")
app.add_typer(keys.app, name="keys")
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(version("hotplate"))
        raise typer.Exit


@app.callback()
def hotplate(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take the options that stand before any verb."""


def main() -> None:
    """Run the command; an expected error ends it with one sentence and its exit code, a defect with its traceback."""
    logging.getLogger().addHandler(logging.NullHandler())  # verbs speak for themselves; `serve` sets its log up
    waiting = logging.StreamHandler()
    waiting.setFormatter(logging.Formatter("hotplate: %(message)s"))
    for name in ("stores.lifecycle", "stores.transfer", "stores.redis"):  # what is waited for, or may yet be lost
        logging.getLogger(name).addHandler(waiting)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 -- `print_error` raises again what is not expected
        sys.exit(print_error(error, as_json="--json" in sys.argv or bool(os.environ.get("HOTPLATE_JSON"))))
