"""`hotplate train`: from interactions to a model folder."""

from pathlib import Path
from typing import Annotated

from hotplate.cli.options import TrainFlags
from hotplate.cli.terminal import Master
from hotplate.stores.options import Flag


def train(
    options: TrainFlags,
    model: Annotated[
        Path,
        Flag(
            "Write the model to this folder; the variable HOTPLATE_MODEL sets it, too.",
            name="out",
            metavar="FOLDER",
            variable="HOTPLATE_MODEL",
        ),
    ],
    master: Master = None,
) -> None:
    """Train a model on interactions: read, split, evaluate, fit, and write a model folder.

    Example: hotplate train clicks.csv.gz --event-weights view=1,buy=5 --min-per-user 5 --out model
    """
    from hotplate.cli import train_work

    train_work.train_verb(options, model, master=master)
