"""`hotplate run`: a resumable job from data to a live release, described by a TOML file."""

from pathlib import Path
from typing import Annotated

from hotplate.stores.options import Argument, Flag


def run(
    pipeline: Annotated[Path, Argument("A TOML file of the tables train, publish, lists, gates and run.", "PIPELINE")],
    check: Annotated[bool, Flag("Read the pipeline, print its steps, and do nothing.", env=False)] = False,
) -> None:
    """Train, evaluate, publish, check gates, activate and prune, as one job, suitable for cron.

    While files and options are unchanged, the same command resumes an interrupted run, and does nothing after a
    finished one. Prints one line of JSON at the end. The environment overrides keys: HOTPLATE_RUN_WAIT is wait of
    the table run.

    Exits with 3 if a gate or a running canary keeps the release from going live; after the end of the canary, the same
    command activates the release.

    Example: hotplate run nightly.toml
    """
    from hotplate.cli import run_work

    run_work.run_verb(pipeline, check=check)
