"""Flags of verbs; those of `train`, `publish` and `run` are also keys of a pipeline."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from hotplate.cli.costs import MaxRu
from hotplate.cli.flags import FolderOrUrl
from hotplate.cli.terminal import Master, StoreUrl
from hotplate.offline.options import GATES, RULES, Format, ListFormat, PublishSettings, ReadOptions, RuleFiles
from hotplate.stores.options import Argument, Flag

# Panels of `--help`.
TEST = "Test"
MODEL = "Engine and parameters"
SEARCH = "Search for parameters"
TRACKING = "MLflow"
INPUT = "How the lists are read"

_run_flag = partial(Flag, prefix="RUN_")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlags:
    """Flags of `train`, and keys of [train] in a pipeline."""

    data: Annotated[
        tuple[Path, ...],
        Argument(
            "CSV, TSV, JSON lines (.gz and .zst too), Parquet, events, folders of them, or URLs.",
            "DATA",
            urls=True,
        ),
    ]
    reading: ReadOptions = field(default_factory=ReadOptions)
    event_weights: Annotated[
        str | None, Flag("The weight of each type of event, as view=1,cart=3,buy=5.", metavar="TYPE=WEIGHT,…")
    ] = None
    half_life: Annotated[
        str | None, Flag("The age at which a row has half of its weight, as 12h, 30d or 8w.", metavar="AGE")
    ] = None
    split: Annotated[
        Literal["by-time", "by-item", "by-user", "random", "held-out-users", "none"] | None,
        Flag(
            "How the data held back are chosen: by-time, by-item, by-user, random, held-out-users, or none. "
            "By default by-time if the data have times, else by-item.",
            TEST,
            metavar="KIND",
        ),
    ] = None
    test_share: Annotated[float, Flag("The share of the data, or of users, to hold back.", TEST, metavar="SHARE")] = (
        0.25
    )
    k: Annotated[int, Flag("The length of the lists that are measured.", TEST, "-k", at_least=1, at_most=1000)] = 10
    engine: Annotated[
        Literal["als", "ease", "neighbours", "popularity", "spark"] | None,
        Flag("als, ease, neighbours, popularity or spark; by default the search chooses one.", MODEL, metavar="ENGINE"),
    ] = None
    params: Annotated[
        str | None,
        Flag(
            "The engine's parameters, without a search, as factors=64,alpha=2,recency=7d.",
            MODEL,
            metavar="NAME=VALUE,…",
        ),
    ] = None
    tune: Annotated[
        float | None,
        Flag("The time that the search may take on one core; by default 36s.", SEARCH, at_least=1, is_time=True),
    ] = None
    prefer: Annotated[
        Literal["accuracy", "balance", "variety"],
        Flag(
            "Which lists the search chooses: the most accurate, the most varied of those that are as good, or the most "
            "varied within 5 %.",
            SEARCH,
            metavar="CHOICE",
        ),
    ] = "balance"
    no_tune: Annotated[bool, Flag("Take the engine's default parameters, without a search.", SEARCH)] = False
    seed: Annotated[int, Flag("The seed of the split and of the fit.", SEARCH)] = 42
    track: Annotated[bool, Flag("Log parameters, metrics and model as a run of MLflow.", TRACKING)] = False
    register: Annotated[
        str | None,
        Flag(
            "Track, and register the model as a version of this name, with an alias.", TRACKING, metavar="NAME[@ALIAS]"
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFlags:
    """Flags of `publish` and `import`, and keys of [publish]."""

    named: Annotated[
        tuple[str, ...],
        Flag(
            "Publish a list of this name, too, from the same kind of source as the default list, or from a .toml file "
            "of its options; repeatable.",
            name="list",
            env=False,
            metavar="NAME=SOURCE",
        ),
    ] = ()
    store: StoreUrl = None
    list_length: Annotated[int, Flag("The maximum number of items in a list.", at_least=1, at_most=1000)] = 20
    item_attributes: Annotated[
        Path | None,
        Flag(
            "A file of items and their attributes, which requests may filter by (`where`).", metavar="FILE", urls=True
        ),
    ] = None
    attribute: Annotated[
        tuple[str, ...],
        Flag(
            "The type of an attribute: number, text, date, or list, as category=list; by default it is guessed.",
            metavar="NAME=KIND",
        ),
    ] = ()
    show: Annotated[
        tuple[str, ...],
        Flag(
            "Attributes that answers may have, as price in `fields=id,price`, separated by commas; repeatable. Any "
            "reader can ask for them.",
            metavar="NAMES",
        ),
    ] = ()
    gate_file: Annotated[Path | None, Flag("A TOML file of bounds that must hold.", GATES, "gates", metavar="FILE")] = (
        None
    )
    gate: Annotated[
        tuple[str, ...],
        Flag(
            "A bound that must hold, as ndcg=0.2, drop.ndcg=0.05, overlap=0.2 or users_kept=0.1; repeatable.",
            GATES,
            metavar="NAME=BOUND",
        ),
    ] = ()
    settings: PublishSettings = field(default_factory=PublishSettings)
    max_ru: MaxRu = None
    dry_run: Annotated[bool, Flag("Write nothing; print rows, bytes and gates.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishFlags(ReleaseFlags):
    """The arguments and flags of `publish`."""

    model: Annotated[
        Path | None,
        Argument(
            "A folder that `hotplate train` wrote, or a model of MLflow, as models:/shop@champion.",
            "MODEL",
            urls=True,
        ),
    ] = None
    fold_in: Annotated[bool, Flag("Publish item factors too, for `serve --fold-in`.", name="fold-in/--no-fold-in")] = (
        False
    )
    master: Master = None
    keep_seen: Annotated[
        bool, Flag("Keep items in a user's list that the user already has.", RULES, "keep-seen/--no-keep-seen")
    ] = False
    rules: RuleFiles = field(default_factory=RuleFiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListColumns:
    """The columns of computed lists by role; None looks for a usual name."""

    user: Annotated[str | None, Flag("The column of the user.", INPUT, "user-column", metavar="COLUMN")] = None
    item: Annotated[str | None, Flag("The column of the item.", INPUT, "item-column", metavar="COLUMN")] = None
    score: Annotated[str | None, Flag("The column of the score.", INPUT, "score-column", metavar="COLUMN")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFlags(ReleaseFlags):
    """The arguments and flags of `import`."""

    lists: Annotated[
        tuple[Path, ...],
        Argument(
            "Files of user, item, score: CSV, TSV, JSON lines (.gz, .zst), Parquet, folders, or URLs.",
            "LISTS",
            urls=True,
        ),
    ] = ()
    columns: ListColumns = field(default_factory=ListColumns)
    title_column: Annotated[str | None, Flag("The column of the title.", INPUT, metavar="COLUMN")] = None
    titles: Annotated[Path | None, Flag("A file of item and title, if the lists have no titles.", INPUT, urls=True)] = (
        None
    )
    popular: Annotated[
        Path | None, Flag("A file of popular items: item, score, optional segment.", INPUT, urls=True)
    ] = None
    similar: Annotated[Path | None, Flag("A file of similar items: item, other item, score.", INPUT, urls=True)] = None
    text: ListFormat = field(default_factory=ListFormat)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The keys of [run], which are also variables: HOTPLATE_RUN_WORK."""

    work: Annotated[Path | None, _run_flag("The folder of the run's state.")] = None
    wait: Annotated[float, _run_flag("The time to wait for another run.", at_least=0, is_time=True)] = 0.0
    keep_ready: Annotated[float, _run_flag("Days to keep releases never live.", at_least=0)] = 7.0
    push: Annotated[str | None, _run_flag("The URL of a Pushgateway.")] = None
    textfile: Annotated[Path | None, _run_flag("A file for node_exporter.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListFlags:
    """The flags that describe lists and the truth."""

    k: Annotated[int, Flag("The first items of each list to measure.", name="-k", at_least=1, at_most=1000)] = 10
    columns: ListColumns = field(default_factory=ListColumns)
    time: Annotated[
        str | None,
        Flag("The column of the truth's time; `none` reads no times.", INPUT, "time-column", metavar="COLUMN"),
    ] = None
    text: Format = field(default_factory=Format)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to search for users."""

    store: StoreUrl = None
    backups: Annotated[tuple[Path, ...], Flag("A backup to search; repeatable.", name="backup", metavar="FOLDER")] = ()
    models: Annotated[
        tuple[Path, ...], Flag("A model folder to search; repeatable.", name="model", metavar="FOLDER")
    ] = ()
    events: Annotated[
        tuple[FolderOrUrl, ...],
        Flag("A folder of events to search, or its URL; repeatable.", name="events"),
    ] = ()
