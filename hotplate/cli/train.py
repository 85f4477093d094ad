"""`hotplate train`: from interactions to a model folder."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import (
    Delimiter,
    Json,
    Titles,
    column_option,
    option,
    out,
    print_json,
    print_rows_read,
    progress_bars,
    table,
)

if TYPE_CHECKING:
    from offline.evaluate import Evaluation
    from offline.pipeline import TrainReport


class Weighting(StrEnum):
    """What becomes of the weight of a user and an item."""

    SUM = "sum"
    BINARY = "binary"
    LOG = "log"


class Split(StrEnum):
    """How test data are chosen."""

    STRATIFIED = "stratified"
    RANDOM = "random"
    NONE = "none"


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A CSV, TSV or Parquet file (.gz and .zst too), or a folder of files of one kind."
        ),
    ],
    model: Annotated[Path, typer.Option("--out", envvar="HOTPLATE_MODEL", help="The model folder to write.")],
    user_column: Annotated[str | None, column_option("user")] = None,
    item_column: Annotated[str | None, column_option("item")] = None,
    weight_column: Annotated[str | None, column_option("weight")] = None,
    event_column: Annotated[
        str | None, column_option("event", "it needs --event-weights, and by default it is guessed from common names")
    ] = None,
    count_column: Annotated[
        str | None,
        column_option("count", "a user and an item then weigh the number of different values that they have in it"),
    ] = None,
    time_column: Annotated[str | None, column_option("time")] = None,
    title_column: Annotated[str | None, column_option("title")] = None,
    segment_column: Annotated[
        str | None, column_option("segment", "each of its values gets a popular list; by default it is `segment`")
    ] = None,
    titles: Titles = None,
    event_weights: Annotated[
        str | None, option("--event-weights", "The weight of each event, as view=1,cart=3,buy=5.")
    ] = None,
    weighting: Annotated[
        Weighting,
        option("--weighting", "Whether a user and an item weigh the sum of their rows, 1, or 1 + ln of the sum."),
    ] = Weighting.SUM,
    where: Annotated[
        list[str] | None,
        option(
            "--where",
            "Use only rows that meet this condition: 'quantity>0', 'country=France', or 'code~^\\d{5}', a regular "
            "expression. It may be given several times.",
            metavar="FILTER",
        ),
    ] = None,
    delimiter: Delimiter = None,
    min_per_user: Annotated[int, option("--min-per-user", "Users with fewer items are left out.", at_least=1)] = 1,
    min_per_item: Annotated[int, option("--min-per-item", "Items with fewer users are left out.", at_least=1)] = 1,
    split: Annotated[
        Split, option("--split", "How test data are chosen: by item, at random, or not at all (no evaluation).")
    ] = Split.STRATIFIED,
    test_share: Annotated[
        float, option("--test-share", "The share of the data that is held back as test data.")
    ] = 0.25,
    k: Annotated[int, option("-k", "The length of the lists that metrics are computed on.", at_least=1)] = 10,
    factors: Annotated[int, option("--factors", "The number of factors of each user and item.")] = 128,
    regularization: Annotated[
        float, option("--regularization", "The regularization of ALS, against overfitting.")
    ] = 30.0,
    alpha: Annotated[float, option("--alpha", "The confidence that ALS gives each unit of weight.")] = 4.0,
    iterations: Annotated[int, option("--iterations", "The number of ALS iterations.")] = 15,
    seed: Annotated[int, option("--seed", "The random seed of the split and the fit.")] = 42,
    as_json: Json = False,
) -> None:
    """Train a model on interactions: read, split, evaluate, fit, and write a model folder.

    Example: hotplate train clicks.csv.gz --event-weights view=1,buy=5 --min-per-user 5 --out model
    """
    from offline.input.columns import Columns
    from offline.input.filters import parse_event_weights
    from offline.pipeline import TrainSettings
    from offline.pipeline import train as train_model
    from offline.train.als import ALSParams

    settings = TrainSettings(
        path=data,
        columns=Columns(
            user=user_column,
            item=item_column,
            weight=weight_column,
            event=event_column,
            count=count_column,
            time=time_column,
            title=title_column,
            segment=segment_column,
        ),
        delimiter=delimiter,
        event_weights=parse_event_weights(event_weights) if event_weights else None,
        where=where or (),
        weighting=weighting.value,
        titles=titles,
        min_per_user=min_per_user,
        min_per_item=min_per_item,
        split=split.value,
        test_share=test_share,
        k=k,
        params=ALSParams(factors, regularization, alpha, iterations, seed),
    )
    with progress_bars() as on_progress:
        report = train_model(settings, model, on_progress)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)


def print_report(report: "TrainReport") -> None:
    """Print what a training read, left out and achieved."""
    facts = report.to_json()
    print_rows_read(facts["data"]["rows"], facts["data"]["source"], facts["data"]["left_out"])
    for what in ("users", "items", "pairs"):
        if facts[f"{what}_left_out"]:
            out.print(f"  {facts[f'{what}_left_out']:,} {what} left out: fewer than the minimum per user or per item")
    out.print(
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['pairs']:,} pairs, {facts['titles']:,} titles"
    )
    if report.evaluation is None:
        out.print(report.note or "", markup=False)
    else:
        _print_evaluation(report.evaluation)
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts["seconds"].items())
    out.print(f"model written to {report.out} ({took})", markup=False)


def _print_evaluation(evaluation: "Evaluation") -> None:
    facts = evaluation.to_json()
    metrics = {name: facts[name] for name in ("model", "popularity")}
    names = [name for name, value in metrics["model"].items() if isinstance(value, float)]
    out.print(
        f"{evaluation.split} split, {evaluation.test_pairs:,} pairs held back, measured at {metrics['model']['k']}:"
    )
    rows = [(who, *(f"{values[name]:.4f}" for name in names)) for who, values in metrics.items()]
    out.print(table(("", *names), rows))
    if evaluation.model.ndcg < evaluation.popularity.ndcg:
        out.print(
            "the model ranks below plain popularity here: try --weighting binary, --min-per-user 5 "
            "--min-per-item 5, or more --regularization together with more --alpha (150 and 20, say)"
        )
