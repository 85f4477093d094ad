"""`hotplate train`: from interactions to a model folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hotplate.cli.terminal import (
    Delimiter,
    Header,
    Json,
    Master,
    NullValues,
    Titles,
    column_option,
    err,
    interruptible,
    option,
    out,
    print_json,
    print_rows_read,
    progress_bars,
    table,
    text_format,
)

if TYPE_CHECKING:
    from offline.evaluate.evaluation import Evaluation
    from offline.job import TrainReport, TrainSettings
    from offline.train.engine import Engine, Params
    from offline.train.tuning import Search, TuneOptions


def train(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="CSV, TSV, JSON lines (all three .gz and .zst too) or Parquet files, segments of events, or folders "
            "of files of one kind; - is standard input.",
        ),
    ],
    model: Annotated[Path, typer.Option("--out", envvar="HOTPLATE_MODEL", help="Write the model to this folder.")],
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
        str | None, option("--event-weights", "Weigh each event by its name, as view=1,cart=3,buy=5.")
    ] = None,
    weighting: Annotated[
        Literal["sum", "binary", "log"],
        option("--weighting", "Weigh a user and an item by the sum of their rows, by 1, or by 1 + ln of the sum."),
    ] = "sum",
    half_life: Annotated[
        str | None,
        option(
            "--half-life",
            "Halve the weight of a row for each 30d, 12h or 8w that it is older than the newest.",
            metavar="TIME",
        ),
    ] = None,
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
    header: Header = None,
    null_values: NullValues = None,
    min_per_user: Annotated[int, option("--min-per-user", "Leave out users with fewer items.", at_least=1)] = 1,
    min_per_item: Annotated[int, option("--min-per-item", "Leave out items with fewer users.", at_least=1)] = 1,
    split: Annotated[
        Literal["by-time", "by-user-time", "leave-last", "by-item", "by-user", "random", "held-out-users", "none"]
        | None,
        option(
            "--split",
            "Test on what came after a cut in time, on the last pairs of each user, or on each user's --last pairs; or "
            "at random on pairs of each item, of each user or of all, or on users who are not learnt from; or none, "
            "for no evaluation. By default by-time, and by-item if there are no times.",
        ),
    ] = None,
    test: Annotated[
        list[Path] | None,
        option(
            "--test",
            "Test on this file instead of a part of the data; it is read by the same columns. It may be given several "
            "times.",
            metavar="FILE",
        ),
    ] = None,
    test_share: Annotated[
        float, option("--test-share", "Hold back this share of the data (or of the users) for the test.")
    ] = 0.25,
    last: Annotated[int, option("--last", "Hold back so many pairs of each user, with leave-last.", at_least=1)] = 1,
    seeds: Annotated[
        int,
        option(
            "--seeds",
            "Evaluate on this many splits, drawn by --seed and the seeds after it, and report means with intervals; "
            "each takes a fit.",
            at_least=1,
        ),
    ] = 1,
    k: Annotated[int, option("-k", "Compute metrics on lists of this length.", at_least=1, at_most=1000)] = 10,
    engine: Annotated[
        Literal["als", "ease", "neighbours", "popularity", "spark"] | None,
        option(
            "--engine",
            "Train this engine; by default the best that the search finds, and ALS with --no-tune. spark is ALS on "
            "--master.",
        ),
    ] = None,
    factors: Annotated[
        int | None, option("--factors", "Learn this many factors of each user and item; 256 with --no-tune.")
    ] = None,
    regularization: Annotated[
        float | None,
        option(
            "--regularization",
            "Regularize ALS or EASE by this much, against overfitting; 30 and 20 with --no-tune.",
        ),
    ] = None,
    reg_param: Annotated[
        float | None,
        option(
            "--reg-param",
            "Regularize ALS on Spark by this much for each interaction of a user or an item, which no --regularization "
            "equals; by default 0.3.",
        ),
    ] = None,
    alpha: Annotated[
        float | None, option("--alpha", "Give each unit of weight this much confidence; 4 with --no-tune.")
    ] = None,
    iterations: Annotated[int | None, option("--iterations", "Run this many iterations of ALS; by default 15.")] = None,
    neighbours: Annotated[
        int | None, option("--neighbours", "Let so many items speak for another, itself among them; 10 with --no-tune.")
    ] = None,
    neighbour_weighting: Annotated[
        Literal["tfidf", "bm25", "cosine", "rp3beta"] | None,
        option("--neighbour-weighting", "How items are compared: rp3beta is by random walks; tfidf with --no-tune."),
    ] = None,
    walk_alpha: Annotated[
        float | None, option("--walk-alpha", "Power of a step's probability, of rp3beta; 0.7 with --no-tune.")
    ] = None,
    walk_beta: Annotated[
        float | None, option("--walk-beta", "Power by which popular items are divided, of rp3beta; 0.3 with --no-tune.")
    ] = None,
    recency: Annotated[
        str | None,
        option(
            "--recency",
            "Multiply scores by the popularity of late, of which half is lost after each 7d, 12h or 8w; by default "
            "chosen by the search.",
            metavar="TIME",
        ),
    ] = None,
    recency_gamma: Annotated[
        float | None, option("--recency-gamma", "Raise that popularity to this power; 1 with --recency.")
    ] = None,
    popular_half_life: Annotated[
        str | None,
        option("--popular-half-life", "Rank by popularity of late, with --engine popularity.", metavar="TIME"),
    ] = None,
    tune: Annotated[
        int | None,
        option("--tune", "Search whatever the size, and go on at random around the best so many times.", at_least=0),
    ] = None,
    no_tune: Annotated[
        bool, option("--no-tune", "Take the defaults, or the parameters named, instead of searching for better ones.")
    ] = False,
    grid: Annotated[
        Path | None, option("--grid", "Search the cells of this TOML or JSON file instead of the usual ones.")
    ] = None,
    seed: Annotated[int, option("--seed", "Draw the split and the start of the fit with this seed.")] = 42,
    master: Master = None,
    as_json: Json = False,
) -> None:
    """Train a model on interactions: read, split, evaluate, fit, and write a model folder.

    Example: hotplate train clicks.csv.gz --event-weights view=1,buy=5 --min-per-user 5 --out model
    """
    settings = settings_of(locals())
    with _session(engine, master):
        print_training(settings, model, as_json=as_json)


def settings_of(given: "Mapping[str, Any]") -> "TrainSettings":
    """Return what the parameters of the verb say, by their names; SettingError for what makes no sense."""
    from offline.evaluate.splits import SplitOptions
    from offline.input.columns import Columns
    from offline.input.filters import parse_event_weights, parse_half_life
    from offline.job import AutoSplit, TrainSettings

    roles = ("user", "item", "weight", "time", "title", "segment", "event", "count")
    events, half_life, kind, seed = given["event_weights"], given["half_life"], given["split"], given["seed"]
    params, tuning = _choice(given)
    chosen = AutoSplit if kind is None else SplitOptions
    return TrainSettings(
        path=given["data"][0],
        more=given["data"][1:],
        columns=Columns(**{role: given[f"{role}_column"] for role in roles}),
        form=text_format(given["delimiter"], given["header"], given["null_values"]),
        event_weights=parse_event_weights(events) if events else None,
        where=given["where"] or (),
        half_life=None if half_life is None else parse_half_life(half_life),
        split=None if kind == "none" else chosen(kind or "by-time", given["test_share"], given["last"], seed),
        params=params,
        tuning=tuning,
        test=given["test"] or (),
        **{name: given[name] for name in ("weighting", "titles", "min_per_user", "min_per_item", "seeds", "k")},
    )


def print_training(settings: "TrainSettings", model: Path, *, as_json: bool = False) -> "TrainReport":
    """Train as *settings* say, write the folder *model*, and print and return what came of it."""
    from offline.job import train as train_model

    with progress_bars() as on_progress:
        report = interruptible(lambda: train_model(settings, model, on_progress, err.print))
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    return report


@contextmanager
def _session(engine: "Engine | None", master: str | None) -> "Iterator[None]":
    """Keep a session of Spark open if it is to train; SettingError if there is a master for another engine."""
    if engine != "spark":
        if master is not None:
            from offline.errors import SettingError

            raise SettingError(f"--master {master} is for --engine spark; give both or none.")
        yield
        return
    from offline.spark.session import spark_session

    with spark_session(master):
        yield


def _choice(given: "Mapping[str, Any]") -> "tuple[Params, TuneOptions | None]":
    """Return the parameters, and what is searched for better ones: nothing, where any are named."""
    from offline.errors import SettingError
    from offline.train.als import ALSParams, SparkParams
    from offline.train.cells import read_grid
    from offline.train.engine import PARAMS, option_of
    from offline.train.tuning import TuneOptions

    own = {field.name for kind in PARAMS.values() for field in fields(kind)} - {"seed", "recency", "half_life_days"}
    found = {name: given.get(option_of(name).replace("-", "_")) for name in sorted(own)}
    named = {name: value for name, value in found.items() if value is not None} | _recency(given)
    tune, no_tune, grid, seed = (given[name] for name in ("tune", "no_tune", "grid", "seed"))
    engine: Engine | None = given["engine"]
    searched = tune is not None or grid is not None
    if no_tune and searched:
        raise SettingError("Both --no-tune and --tune or --grid are given; give one of them.")
    if engine == "spark" and searched:
        raise SettingError("spark has no parameters to search; leave out --tune and --grid.")
    if named and searched:
        raise SettingError(
            f"{_flags(named)} cannot be given where parameters are searched; leave out --tune and --grid."
        )
    if engine is None and named.keys() & {"neighbours", "weighting", "walk_alpha", "walk_beta"}:
        engine = "neighbours"
    kind = PARAMS[engine or "als"]
    if strange := named.keys() - {field.name for field in fields(kind)}:
        raise SettingError(f"{_flags(strange)} is not a parameter of the engine {engine or 'als'}.")
    if named.keys() & {"walk_alpha", "walk_beta"} and named.setdefault("weighting", "rp3beta") != "rp3beta":
        raise SettingError("--walk-alpha and --walk-beta are of --neighbour-weighting rp3beta.")
    params = kind(**named | ({"seed": seed} if kind in (ALSParams, SparkParams) else {}))
    if no_tune or named or engine == "spark":
        return params, None
    if not searched:
        return params, TuneOptions(engine=engine)
    cells = () if grid is None else read_grid(grid, ALSParams(seed=seed))
    return params, TuneOptions(cells, engine, tune or 0, max_pairs=None)


def _recency(given: "Mapping[str, Any]") -> "dict[str, Any]":
    """Return what is said of recency and of popularity of late, by the names of parameters."""
    from offline.errors import SettingError
    from offline.input.filters import parse_half_life
    from offline.train.popularity import Recency

    gamma, found = given["recency_gamma"], dict[str, Any]()
    if given["recency"] is not None:
        days = parse_half_life(given["recency"]) / timedelta(days=1)
        found["recency"] = Recency(days, 1.0 if gamma is None else gamma)
    elif gamma is not None:
        raise SettingError("--recency-gamma is the power of --recency; give both.")
    if given["popular_half_life"] is not None:
        found["half_life_days"] = parse_half_life(given["popular_half_life"]) / timedelta(days=1)
    return found


def _flags(names: Iterable[str]) -> str:
    from offline.train.engine import option_of

    return " and ".join(f"--{option_of(name)}" for name in sorted(names))


def print_report(report: "TrainReport") -> None:
    """Print what a training read, left out and achieved."""
    facts = report.to_json()
    if report.warning:
        out.print(report.warning)
    _print_read(facts["data"])
    for what in ("users", "items", "pairs"):
        if facts[f"{what}_left_out"]:
            out.print(f"  {facts[f'{what}_left_out']:,} {what} left out: fewer than the minimum per user or per item")
    out.print(
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['pairs']:,} pairs, {facts['titles']:,} titles"
    )
    if test := facts["data"]["test"]:
        _print_read(test)
        for reason, count in test["pairs_left_out"].items():
            out.print(f"  {count:,} pairs left out: {reason}")
    if report.search is None:
        out.print(report.tuning_note or "")
    else:
        _print_search(report.search, facts["seconds"]["tune"])
    if report.evaluation is None:
        out.print(report.note or "")
    else:
        _print_evaluation(report.evaluation)
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in facts["seconds"].items())
    out.print(f"model written to {report.out} ({took})")


def _print_read(data: "Mapping[str, Any]") -> None:
    print_rows_read(data["source"], data["rows"], data["left_out"], data["notes"])


def _print_evaluation(evaluation: "Evaluation") -> None:
    shown = [evaluation.model, *evaluation.baselines]
    tested = evaluation.model.metrics
    kind = "given test data" if evaluation.split is None else f"{evaluation.split.kind} split"
    if evaluation.runs > 1:
        kind += f", {evaluation.runs} {'pieces' if evaluation.split and evaluation.split.in_time else 'seeds'}"
    out.print(
        f"{kind}: {evaluation.test_pairs:,} pairs of {tested.users:,} users held back, "
        f"measured at {evaluation.k} (± half of the 95 % interval)"
    )
    if evaluation.cold_pairs:
        out.print(
            f"  {evaluation.cold_pairs:,} of the pairs are of items without an interaction in what was learnt from"
        )
    headings = ("", "model", *(each.engine for each in evaluation.baselines))
    out.print(table(headings, metric_rows([each.to_json() for each in shown])))
    if tested.users_with_lists < tested.users:
        missing = tested.users - tested.users_with_lists
        out.print(f"{missing:,} of {tested.users:,} users have no list, and are served the popular one; as served:")
        out.print(table(headings, metric_rows([asdict(each.as_served) for each in shown])))


def metric_rows(measured: "Sequence[Mapping[str, Any]]") -> "Iterator[tuple[str, ...]]":
    """Yield a row for each metric, with a column for each engine, whose figures and `intervals` are by their names."""
    for name, value in measured[0].items():
        if isinstance(value, float):
            yield name, *(_with_interval(each.get(name), each.get("intervals", {}).get(name)) for each in measured)


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if interval is None else f"{value:.4f} ± {(interval[1] - interval[0]) / 2:.4f}"


def _print_search(search: "Search", seconds: float) -> None:
    """Print what a search found, next to the defaults, and what it took."""
    from offline.train.engine import described

    best, usual = search.trials[search.best], search.usual
    found = [f"{described(best.params)}: nDCG@{search.k} {best.ndcg:.4f} on the inner split"]
    if usual is not None and usual is not best:
        found.append(f"the defaults {usual.ndcg:.4f}")
    out.print("; ".join([*found, f"{len(search.trials)} trials, {seconds:.0f} s"]))
