"""`hotplate evaluate`: measure any lists, lay out a model's report, and compare two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import (
    Delimiter,
    Json,
    interruptible,
    out,
    print_json,
    print_rows_read,
    require_folder,
    with_store,
)
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from hotplate.offline.evaluate.list_evaluation import Candidate, Evaluator, Truth
    from hotplate.report import Report
    from hotplate.stores.store import Store


app = Verbs(
    no_args_is_help=True,
    help="Measure any lists against what users chose, lay out a model's report, and compare two.\n\n"
    "Example: hotplate evaluate lists.parquet test.csv --train train.csv",
)

# As `hotplate train` prints metrics.
HALF = "(± half of the 95 % interval)"
ORIGIN = (
    "Rows of user, item and score as `import` reads them, a model folder, or the URL of a store, with #RELEASE at its "
    "end for another than the live one."
)
Train = Annotated[Path | None, Flag("A file of what users had before, to measure popularity and the catalogue by.")]
K = Annotated[int, Flag("The first items of each list to measure.", name="-k", at_least=1, at_most=1000)]
UserColumn = Annotated[str | None, Flag("The column of the user.")]
ItemColumn = Annotated[str | None, Flag("The column of the item.")]
ScoreColumn = Annotated[str | None, Flag("The column of the score.")]


@app.command()
def lists(
    origin: Annotated[str, typer.Argument(metavar="LISTS", help=ORIGIN)],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="A file, or a folder, of user and item: the choices.")],
    train: Train = None,
    k: K = 10,
    rating_column: Annotated[str | None, Flag("Measure scores as predictions of this column, too.")] = None,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    score_column: ScoreColumn = None,
    delimiter: Delimiter = None,
    as_json: Json = False,
) -> None:
    """Measure any lists against what users chose; `lists` itself may be left out.

    Example: hotplate evaluate lists.parquet test.csv --train train.csv

    Example: hotplate evaluate file:///var/lib/hotplate test.csv -k 20
    """
    named = {"user": user_column, "item": item_column}
    scored = named | {"score": score_column}

    def work() -> "tuple[Truth, Report]":
        rated = named | {"rating": rating_column}
        evaluator, (candidate,) = _hold(truth, [origin], train, k, rated, scored, delimiter)
        return evaluator.truth, evaluator.evaluate(candidate)

    choices, found = interruptible(work)
    if not as_json:
        print_rows_read(str(truth), choices.rows, choices.left_out)
    _print(found, as_json=as_json)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, as `hotplate train` writes it.")],
    page: Annotated[Path, typer.Option("--out", help="Write the page to this file.")] = Path("evaluation.html"),
    as_json: Annotated[bool, Flag("Print what the page says as JSON, and write no page.", name="json")] = False,
) -> None:
    """Lay out how good a model is as one HTML file: next to its baselines, with sample lists.

    The file holds all that it shows. Its first line says whether a baseline is better.

    Example: hotplate evaluate report model --out report.html
    """
    from hotplate.offline.evaluate.model_report import model_report

    if as_json:
        _print(interruptible(lambda: model_report(model)), as_json=True)
        return
    from hotplate.report_page import save_page

    require_folder(page)
    found = interruptible(lambda: model_report(model))
    save_page(found, page)
    out.print(found.sentence)
    for complaint in found.broken:
        out.print(complaint)
    out.print(f"report written to {page}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help=f"What may be worse: {ORIGIN}")],
    second: Annotated[str, typer.Argument(metavar="B", help="What may be better, given in the same way.")],
    truth: Annotated[Path, Flag("Hold the lists of both against this file of user and item.")],
    k: K = 10,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    score_column: ScoreColumn = None,
    delimiter: Delimiter = None,
    as_json: Json = False,
) -> None:
    """Say whether B is better than A, or whether the difference may be chance.

    Each user's two lists are compared with each other, which finds smaller differences than two separate evaluations.

    Exit codes: 0 B is not worse, as far as can be told; 1 something failed; 2 the two cannot be compared; 3 B is worse.

    Example: hotplate evaluate compare old.parquet new.parquet --truth test.csv
    """
    named = {"user": user_column, "item": item_column}
    scored = named | {"score": score_column}

    def work() -> "Report":
        evaluator, (one, other) = _hold(truth, [first, second], None, k, named, scored, delimiter)
        return evaluator.compare(one, other)

    found = interruptible(work)
    _print(found, as_json=as_json)
    raise typer.Exit(found.exit_code)


def _print(found: "Report", *, as_json: bool) -> None:
    from hotplate.report import print_report, to_json

    if as_json:
        print_json(to_json(found))
    else:
        print_report(found, out)


def _hold(
    truth: Path,
    origins: "Sequence[str]",
    train: Path | None,
    k: int,
    named: "Mapping[str, str | None]",
    scored: "Mapping[str, str | None]",
    delimiter: str | None,
) -> "tuple[Evaluator, list[Candidate]]":
    """Read a truth, the lists of *origins* for its users, and what these had before: *train*, or what a model knows."""
    from hotplate.offline.evaluate.list_evaluation import Evaluator, read_history, read_truth

    choices = read_truth(truth, named, delimiter)
    candidates = [_candidate(origin, choices.pairs, k, scored, delimiter) for origin in origins]
    histories = [each.history for each in candidates if each.history is not None]
    if train is not None:
        histories = [read_history(train, {role: named[role] for role in ("user", "item")}, delimiter)]
    return Evaluator(choices, candidates, k, histories[0] if histories else None), candidates


def _candidate(
    origin: str, pairs: "pl.DataFrame", k: int, named: "Mapping[str, str | None]", delimiter: str | None
) -> "Candidate":
    from hotplate.offline.evaluate.list_evaluation import from_files, from_model, from_release
    from hotplate.offline.input.files import Format
    from hotplate.offline.model import is_model, load
    from hotplate.releases import find_release
    from hotplate.stores.urls import redacted

    if "://" in origin:
        url, _, release = origin.partition("#")

        async def read(opened: "Store") -> "Candidate":
            found = await find_release(opened, release or None)
            return await from_release(opened, found, f"{redacted(url)}#{found.id}", pairs, k)

        return with_store(url, read)
    path = Path(origin)
    if is_model(path):
        return from_model(load(path), origin, pairs, k)
    return from_files(path, pairs, k, named, Format(delimiter))
