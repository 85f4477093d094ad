"""`hotplate train`: from interactions to a model folder."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.progress import bars
from hotplate.cli.terminal import Json, out, print_json, table

if TYPE_CHECKING:
    from offline.pipeline import TrainReport


class Weighting(StrEnum):
    """What a user's weight for an item becomes."""

    SUM = "sum"
    BINARY = "binary"
    LOG = "log"


class Split(StrEnum):
    """How pairs are held back for the evaluation."""

    STRATIFIED = "stratified"
    RANDOM = "random"
    NONE = "none"


def _column(role: str, guessed: str = "; guessed from common names") -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{role}-column",
        envvar=f"HOTPLATE_{role.upper()}_COLUMN",
        help=f"The {role} column{guessed}.",
        show_default=False,
    )
    return option


Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="A CSV, TSV or Parquet file (.gz and .zst too), or a folder of one kind.")
]


def train(
    data: Data,
    model: Annotated[Path, typer.Option("--out", envvar="HOTPLATE_MODEL", help="The model folder to write.")],
    user_column: Annotated[str | None, _column("user")] = None,
    item_column: Annotated[str | None, _column("item")] = None,
    weight_column: Annotated[str | None, _column("weight")] = None,
    event_column: Annotated[str | None, _column("event", ", for --event-weights; guessed from common names")] = None,
    count_column: Annotated[
        str | None, _column("count", ": a pair weighs as many different values as it has there, invoices for example")
    ] = None,
    time_column: Annotated[str | None, _column("time")] = None,
    title_column: Annotated[str | None, _column("title")] = None,
    segment_column: Annotated[
        str | None, _column("segment", " (a country, say), whose values each get a popular list; guessed if named so")
    ] = None,
    titles: Annotated[
        Path | None,
        typer.Option(envvar="HOTPLATE_TITLES", help="A file of item and title, where titles are elsewhere."),
    ] = None,
    event_weights: Annotated[
        str | None,
        typer.Option(envvar="HOTPLATE_EVENT_WEIGHTS", help="What each event weighs, as view=1,cart=3,buy=5."),
    ] = None,
    weighting: Annotated[
        Weighting, typer.Option(envvar="HOTPLATE_WEIGHTING", help="Keep a pair's sum of weights, make it 1, or 1 + ln.")
    ] = Weighting.SUM,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER",
            envvar="HOTPLATE_WHERE",
            help="Keep rows with this only, as 'quantity>0', 'country=France' or 'code~^\\d{5}' (regular expression); "
            "may be given several times.",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(envvar="HOTPLATE_DELIMITER", help="Between fields of CSV; guessed.", show_default=False),
    ] = None,
    min_per_user: Annotated[
        int, typer.Option(min=1, envvar="HOTPLATE_MIN_PER_USER", help="Leave out users with fewer items.")
    ] = 1,
    min_per_item: Annotated[
        int, typer.Option(min=1, envvar="HOTPLATE_MIN_PER_ITEM", help="Leave out items with fewer users.")
    ] = 1,
    split: Annotated[
        Split, typer.Option(envvar="HOTPLATE_SPLIT", help="How pairs are held back to measure on.")
    ] = Split.STRATIFIED,
    test_share: Annotated[
        float, typer.Option(envvar="HOTPLATE_TEST_SHARE", help="The share of pairs that is held back.")
    ] = 0.25,
    k: Annotated[int, typer.Option("-k", min=1, envvar="HOTPLATE_K", help="Metrics are at k.")] = 10,
    factors: Annotated[int, typer.Option(envvar="HOTPLATE_FACTORS", help="Length of a factor.")] = 128,
    regularization: Annotated[
        float, typer.Option(envvar="HOTPLATE_REGULARIZATION", help="Against overfitting.")
    ] = 30.0,
    alpha: Annotated[float, typer.Option(envvar="HOTPLATE_ALPHA", help="Confidence per unit of weight.")] = 4.0,
    iterations: Annotated[int, typer.Option(envvar="HOTPLATE_ITERATIONS", help="Rounds of ALS.")] = 15,
    seed: Annotated[int, typer.Option(envvar="HOTPLATE_SEED", help="Of the split and the fit.")] = 42,
    as_json: Json = False,
) -> None:
    """Learn from interactions: read, split, fit, evaluate, and write a model folder.

    Example: hotplate train clicks.csv.gz --event-weights view=1,buy=5 --min-per-user 5 --out model
    """
    from offline.train.als import ALSParams
    from offline.input.columns import Columns
    from offline.input.filters import parse_event_weights
    from offline.pipeline import TrainSettings
    from offline.pipeline import train as learn

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
        delimiter=delimiter.replace("\\t", "\t") if delimiter else None,
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
    with bars() as tell:
        report = learn(settings, model, tell)
    if as_json:
        print_json(report.to_json())
    else:
        show(report)


def show(report: "TrainReport") -> None:
    """Print what a training read, left out and achieved."""
    facts = report.to_json()
    out.print(f"read {facts['data']['rows']:,} rows of {facts['data']['source']}", markup=False)
    for reason, count in facts["data"]["left_out"].items():
        out.print(f"  {count:,} left out: {reason}", markup=False)
    for what in ("users", "items", "pairs"):
        if facts[f"{what}_left_out"]:
            out.print(f"  {facts[f'{what}_left_out']:,} {what} left out: fewer than the minimum per user or per item")
    out.print(
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['pairs']:,} pairs, {facts['titles']:,} titles"
    )
    if report.evaluation is None:
        out.print(report.note or "", markup=False)
    else:
        held = report.evaluation
        metrics = {name: held.to_json()[name] for name in ("model", "popularity")}
        names = [name for name, value in metrics["model"].items() if isinstance(value, float)]
        out.print(f"{held.split} split, {held.test_pairs:,} pairs held back, measured at {metrics['model']['k']}:")
        rows = [(who, *(f"{values[name]:.4f}" for name in names)) for who, values in metrics.items()]
        out.print(table(("", *names), rows))
        if held.model.ndcg < held.popularity.ndcg:
            out.print(
                "the model ranks below plain popularity here: try --weighting binary, --min-per-user 5 "
                "--min-per-item 5, or more --regularization together with more --alpha (150 and 20, say)"
            )
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts["seconds"].items())
    out.print(f"model written to {report.out} ({took})", markup=False)
