"""`hotplate evaluate`: measure any lists, lay out a model's report, and compare two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import (
    REFUSED,
    Delimiter,
    Json,
    interruptible,
    out,
    print_json,
    print_rows_read,
    require_folder,
    table,
    with_store,
)
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from hotplate.offline.evaluate.candidate import Candidate, LiveRelease, Truth
    from hotplate.offline.evaluate.list_evaluation import Comparison, Evaluator, ListEvaluation
    from hotplate.offline.evaluate.report import ReadLive
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

    def work() -> "tuple[Truth, ListEvaluation]":
        rated = named | {"rating": rating_column}
        evaluator, (candidate,) = _hold(truth, [origin], train, k, rated, scored, delimiter)
        return evaluator.truth, evaluator.evaluate(candidate)

    choices, found = interruptible(work)
    if as_json:
        print_json(found.to_json())
    else:
        print_rows_read(str(truth), choices.rows, choices.left_out)
        _print_evaluation(found)


@app.command()
def report(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, as `hotplate train` writes it.")],
    page: Annotated[Path, typer.Option("--out", help="Write the page to this file.")] = Path("evaluation.html"),
    store: Annotated[str | None, Flag("Compare with what is live in this store, too.", metavar="URL")] = None,
    at_random: Annotated[bool, Flag("Also show figures of a random split, which flatter.", name="random")] = False,
    as_json: Annotated[bool, Flag("Print what the page says as JSON, and write no page.", name="json")] = False,
) -> None:
    """Lay out how good a model is as one HTML file: next to its baselines and what is live, with sample lists.

    The file holds all that it shows. Its first line says whether a baseline is better.

    Example: hotplate evaluate report model --out report.html --store file:///var/lib/hotplate
    """
    from hotplate.offline.evaluate.report import gather

    if as_json:
        print_json(interruptible(lambda: gather(model, _live_reader(store), at_random=at_random)))
        return
    from hotplate.cli.evaluation_page import evaluation_report
    from hotplate.report_page import save_page

    require_folder(page)
    facts = interruptible(lambda: gather(model, _live_reader(store), at_random=at_random))
    save_page(evaluation_report(facts), page)
    out.print(f"{facts['verdict']['sentence']}.")
    for remark in facts["verdict"]["remarks"]:
        out.print(remark)
    if facts["random"] is not None:
        k, figures = facts["k"], facts["random"]["metrics"]
        rows = [(name, *(f"{each['ndcg']:.4f}" for each in both)) for name, both in figures.items()]
        out.print(table((f"nDCG@{k} as served", "by time", "at random (flatters)"), rows))
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

    def work() -> "Comparison":
        evaluator, (one, other) = _hold(truth, [first, second], None, k, named, scored, delimiter)
        return evaluator.compare(one, other)

    found = interruptible(work)
    if as_json:
        print_json(found.to_json())
    else:
        _print_comparison(found)
    raise typer.Exit(REFUSED if found.verdict == "worse" else 0)


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
    from hotplate.offline.evaluate.candidate import read_history, read_truth
    from hotplate.offline.evaluate.list_evaluation import Evaluator

    choices = read_truth(truth, named, delimiter)
    candidates = [_candidate(origin, choices.pairs, k, scored, delimiter) for origin in origins]
    histories = [each.history for each in candidates if each.history is not None]
    if train is not None:
        histories = [read_history(train, {role: named[role] for role in ("user", "item")}, delimiter)]
    return Evaluator(choices, candidates, k, histories[0] if histories else None), candidates


def _candidate(
    origin: str, pairs: "pl.DataFrame", k: int, named: "Mapping[str, str | None]", delimiter: str | None
) -> "Candidate":
    from hotplate.offline.evaluate.candidate import from_files, from_model, from_release
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


def _live_reader(url: str | None) -> "ReadLive | None":
    """Return what reads the live release of a store; None if no store was named."""
    if url is None:
        return None
    from hotplate.offline.evaluate.candidate import read_live

    def read(users: "Sequence[str]", k: int) -> "LiveRelease | None":
        return with_store(url, lambda opened: read_live(opened, users, k), may_be_new=True)

    return read


def _print_evaluation(found: "ListEvaluation") -> None:
    from dataclasses import asdict

    from hotplate.offline.evaluate.evaluation import metric_rows

    ranking = found.ranking
    missing = ranking.users - ranking.users_with_lists
    out.print(f"{found.pairs:,} pairs of {ranking.users:,} users, measured at {ranking.k} {HALF}:")
    shown = {"lists": found.ranking, "lists, as served": found.as_served, "popularity": found.popularity}
    known = {name: each for name, each in shown.items() if each is not None}
    out.print(table(("", *known), metric_rows([asdict(each) for each in known.values()])))
    if missing:
        out.print(f"{missing:,} of {ranking.users:,} users have no list{' of their own' if found.as_served else ''}")
    if found.seen_pairs:
        out.print(f"{found.seen_pairs:,} of the pairs are of items that the user had before")
    for name, each in (("what the lists are like", found.variety), (f"{found.predicted:,} ratings", found.rating)):
        if each is not None:
            out.print(f"{name}:")
            out.print(table(("", "lists"), metric_rows([asdict(each)])))
    if found.popularity is not None and found.popularity.ndcg > ranking.ndcg:
        out.print("the popular items rank better than the lists")


def _print_comparison(found: "Comparison") -> None:
    out.print(f"{found.users:,} users, measured at {found.k}:")
    rows = []
    for each in found.changes:
        interval = "" if each.interval is None else f" ({each.interval[0]:+.4f}…{each.interval[1]:+.4f})"
        rows.append((each.metric, f"{each.a:.4f}", f"{each.b:.4f}", f"{each.b - each.a:+.4f}{interval}", each.verdict))
    out.print(table(("", "A", "B", "B - A (95 %)", "B is"), rows))
    out.print(found.sentence)
