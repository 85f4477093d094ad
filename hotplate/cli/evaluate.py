"""`hotplate evaluate`: measure lists, report on a model, and compare two."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import (
    Delimiter,
    Json,
    interruptible,
    out,
    print_rows_read,
    require_folder,
    show_report,
    with_store,
)
from hotplate.stores.options import Argument, Flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from hotplate.offline.evaluate.reports import Candidate, Evaluator, Truth
    from hotplate.report import Report
    from hotplate.stores.store import Store


app = Verbs(
    no_args_is_help=True,
    help="Measure lists against the choices of users, report on a model, and compare two.\n\n"
    "Example: hotplate evaluate lists.parquet test.csv --train train.csv",
)
ORIGIN = "Rows as `import` reads them, also by URL, a model folder, or the URL of a store, with #RELEASE unless live."


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFlags:
    """The flags that describe lists and the truth."""

    k: Annotated[int, Flag("The first items of each list to measure.", name="-k", at_least=1, at_most=1000)] = 10
    user_column: Annotated[str | None, Flag("The column of the user.")] = None
    item_column: Annotated[str | None, Flag("The column of the item.")] = None
    score_column: Annotated[str | None, Flag("The column of the score.")] = None
    delimiter: Delimiter = None
    as_json: Json = False


@app.command()
def lists(
    origin: Annotated[str, Argument(ORIGIN, "LISTS")],
    truth: Annotated[Path, Argument("A file, or a folder, of user and item: the choices.", "TRUTH", urls=True)],
    flags: ListFlags,
    train: Annotated[
        Path | None, Flag("Earlier interactions, to measure popularity and coverage by.", urls=True)
    ] = None,
    rating_column: Annotated[str | None, Flag("Also measure scores as predictions of this column.")] = None,
) -> None:
    """Measure any lists against the choices of users; `lists` itself may be left out.

    Example: hotplate evaluate lists.parquet test.csv --train train.csv
    """

    def work() -> "tuple[Truth, Report]":
        evaluator, (candidate,) = _hold(truth, [origin], flags, train, rating_column)
        return evaluator.truth, evaluator.evaluate(candidate)

    from hotplate.offline.input.files import named_paths

    choices, found = interruptible(work)
    if not flags.as_json:
        print_rows_read(named_paths([truth]), choices.rows, choices.left_out)
    show_report(found, as_json=flags.as_json)


@app.command()
def report(
    model: Annotated[Path, Argument("A folder written by `hotplate train`.", "MODEL")],
    page: Annotated[Path, Flag("Write the page to this file.", name="out", env=False)] = Path("evaluation.html"),
    as_json: Annotated[bool, Flag("Print the report as JSON, and write no page.", name="json")] = False,
) -> None:
    """Write an HTML page on the quality of a model, next to its baselines, with sample lists.

    Example: hotplate evaluate report model --out report.html
    """
    from hotplate.offline.evaluate.model_report import model_report

    if as_json:
        show_report(interruptible(lambda: model_report(model)), as_json=True)
        return
    from hotplate.report_page import save_page

    require_folder(page)
    found = interruptible(lambda: model_report(model))
    save_page(found, page)
    show_report(found, as_json=False)
    out.print(f"report written to {page}")


@app.command()
def compare(
    first: Annotated[str, Argument(f"The lists that may be worse: {ORIGIN}", "A")],
    second: Annotated[str, Argument("The lists that may be better, given in the same way.", "B")],
    truth: Annotated[Path, Flag("Compare both with this file of user and item.", urls=True)],
    flags: ListFlags,
) -> None:
    """Test whether B is better than A, by the difference of each user's two lists.

    Exit codes: 0 B is not significantly worse; 1 failed; 3 B is worse.

    Example: hotplate evaluate compare old.parquet new.parquet --truth test.csv
    """

    def work() -> "Report":
        evaluator, (one, other) = _hold(truth, [first, second], flags)
        return evaluator.compare(one, other)

    found = interruptible(work)
    show_report(found, as_json=flags.as_json)
    raise typer.Exit(found.exit_code)


def _hold(
    truth: Path, origins: "Sequence[str]", flags: ListFlags, train: Path | None = None, rating: str | None = None
) -> "tuple[Evaluator, list[Candidate]]":
    from hotplate.offline.evaluate.reports import Evaluator, read_history, read_truth

    named = {"user": flags.user_column, "item": flags.item_column}
    choices = read_truth(truth, named | {"rating": rating}, flags.delimiter)
    candidates = [_candidate(origin, choices.pairs, flags) for origin in origins]
    histories = [each.history for each in candidates if each.history is not None]
    if train is not None:
        histories = [read_history(train, named, flags.delimiter)]
    return Evaluator(choices, candidates, flags.k, histories[0] if histories else None), candidates


def _candidate(origin: str, pairs: "pl.DataFrame", flags: ListFlags) -> "Candidate":
    from hotplate.offline.evaluate.reports import from_files, from_model, from_release
    from hotplate.offline.input.files import Format
    from hotplate.offline.model import is_model, load
    from hotplate.releases import find_release
    from hotplate.stores.connect import is_store_url
    from hotplate.stores.urls import redacted

    if is_store_url(origin):
        url, _, release = origin.partition("#")

        async def read(opened: "Store") -> "Candidate":
            found = await find_release(opened, release or None)
            return await from_release(opened, found, f"{redacted(url)}#{found.id}", pairs, flags.k)

        return with_store(url, read)
    if is_model(Path(origin)):
        return from_model(load(origin), origin, pairs, flags.k)
    named = {"user": flags.user_column, "item": flags.item_column, "score": flags.score_column}
    return from_files(origin, pairs, flags.k, named, Format(flags.delimiter))
