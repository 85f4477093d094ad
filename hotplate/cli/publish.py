"""`hotplate publish` and `hotplate import`: from a model, or from computed lists, to a live release."""

from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from hotplate.cli.costs import MaxRu, RequestUnitMeter, limit_ru
from hotplate.cli.flags import from_table, settings_of
from hotplate.cli.terminal import (
    Json,
    Master,
    StoreUrl,
    TextFormat,
    chosen_store,
    err,
    interruptible,
    out,
    print_json,
    print_rows_read,
    progress_bars,
    shown_store,
    table,
    with_store,
)
from hotplate.stores.options import RARE, Argument, Flag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hotplate.offline.list_import import ImportSettings
    from hotplate.offline.lists import ListSettings, ModelLists
    from hotplate.offline.publish import ListSource, NamedLists, PartedSource, PublishSettings, Written
    from hotplate.offline.rules import Rules
    from hotplate.offline.training import OnStage
    from hotplate.stores.catalogue import ReleaseId
    from hotplate.stores.manifest import Manifest
    from hotplate.stores.publication import WriteResult
    from hotplate.stores.store import Plan, Store
    from hotplate.stores.verification import OnProgress


Encoding = Literal["json", "zstd"]
Keep = Annotated[int, Flag("Releases to keep before the live one.", at_least=0)]
DryRun = Annotated[bool, Flag("Write nothing; print rows, bytes and gates.")]
EndCanary = Annotated[bool, Flag("Go live, and end a canary that runs.", env=False)]
Arm = Annotated[Literal["A", "B"], Flag("The arm of a running experiment.", env=False)]

# Panels of `--help`.
GATES = "Conditions for going live"
RULES = "Business rules"
INPUT = "How the lists are read"


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """The options of a publish; StoreMisused for a dry run of a draft."""

    store: str | None
    settings: "PublishSettings"
    dry_run: bool
    as_json: bool

    def __post_init__(self) -> None:
        from hotplate.stores.errors import StoreMisused

        if self.dry_run and self.settings.resume is not None:
            raise StoreMisused("--dry-run cannot rehearse the rest of a draft; leave out --resume")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFlags:
    """Flags of `publish` and `import`, and keys of [publish]."""

    named: Annotated[
        tuple[str, ...],
        Flag(
            "A named list: a SOURCE as of the default list, or a .toml file of its options; repeatable.",
            name="list",
            env=False,
            metavar="NAME=SOURCE",
        ),
    ] = ()
    store: StoreUrl = None
    list_length: Annotated[int, Flag("Items in each list, at most.", at_least=1, at_most=1000)] = 20
    item_attributes: Annotated[
        Path | None,
        Flag("A file of items and columns that `where` of a request may filter by.", metavar="FILE", urls=True),
    ] = None
    attribute: Annotated[
        tuple[str, ...],
        Flag("Read a column as number or text, as price=number; else it is guessed.", metavar="NAME=KIND"),
    ] = ()
    encoding: Annotated[Encoding | None, Flag("Of lists; by default json in files, zstd elsewhere.", RARE)] = None
    activate: Annotated[bool, Flag("Make the release live once it is written.")] = True
    keep: Keep = 1
    resume: Annotated[
        str | None, Flag("Continue this draft, with the same input and options.", env=False, metavar="RELEASE")
    ] = None
    gates: Annotated[Path | None, Flag("The bounds in this TOML file must hold.", GATES, metavar="FILE")] = None
    gate: Annotated[
        tuple[str, ...],
        Flag("As ndcg=0.2, drop.ndcg=0.05, overlap=0.2, users_kept=0.1; repeatable.", GATES, metavar="NAME=BOUND"),
    ] = ()
    force: Annotated[bool, Flag("Go live even if a gate fails; the release records that.", GATES, env=False)] = False
    end_canary: EndCanary = False
    arm: Arm = "A"
    max_ru: MaxRu = None
    dry_run: DryRun = False
    as_json: Json = False

    def to_options(self) -> PublishOptions:
        """Return the options; SettingError for invalid gates, StoreMisused for an invalid URL."""
        from hotplate.offline.gates import read_gates
        from hotplate.offline.publish import PublishSettings

        settings = PublishSettings(
            encoding=self.encoding,
            activate=self.activate,
            keep=self.keep,
            resume=self.resume,
            gates=read_gates(self.gates, self.gate),
            force=self.force,
            end_canary=self.end_canary,
            arm=self.arm,
        )
        return PublishOptions(limit_ru(self.store, self.max_ru), settings, self.dry_run, self.as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishFlags(ReleaseFlags):
    """The arguments and flags of `publish`."""

    model: Annotated[
        Path | None,
        Argument(
            "A folder that `hotplate train` wrote, or a model of MLflow, as models:/shop@champion.",
            "[MODEL]",
            urls=True,
        ),
    ] = None
    fold_in: Annotated[bool, Flag("Publish item factors too, for `serve --fold-in`.", name="fold-in/--no-fold-in")] = (
        False
    )
    master: Master = None
    keep_seen: Annotated[
        bool, Flag("Lists may contain items that the user has.", RULES, "keep-seen/--no-keep-seen")
    ] = False
    available: Annotated[
        Path | None, Flag("Recommend only the items in this file.", RULES, metavar="FILE", urls=True)
    ] = None
    exclude: Annotated[
        Path | None, Flag("Never recommend the items in this file.", RULES, metavar="FILE", urls=True)
    ] = None
    categories: Annotated[Path | None, Flag("A file of item and category.", RULES, metavar="FILE", urls=True)] = None
    max_per_category: Annotated[int | None, Flag("Items of a category in a list, at most.", RULES, at_least=1)] = None
    min_history: Annotated[int, Flag("Users with fewer items get the popular list.", RULES, at_least=1)] = 1
    boost: Annotated[
        Path | None, Flag("A file of item and factor of its scores.", RULES, metavar="FILE", urls=True)
    ] = None
    pin: Annotated[
        Path | None, Flag("The items in this file come first in every list.", RULES, metavar="FILE", urls=True)
    ] = None
    diversity: Annotated[
        float, Flag("Weight of variety against relevance, as 0.3; 0 is off.", RULES, at_least=0, at_most=0.9)
    ] = 0.0
    rotate: Annotated[
        Path | None,
        Flag("Items that these events show without a click sink in a user's list.", RULES, metavar="EVENTS", urls=True),
    ] = None
    explore: Annotated[str | None, Flag("New items in one of ten places, as new=1,days=7.", RULES, metavar="new=N")] = (
        None
    )

    def read_rules(self) -> "Rules":
        """Read the business rules; raises DataError and SettingError."""
        from hotplate.offline.rules import read_rules

        names = ("available", "exclude", "categories", "max_per_category", "min_history", "boost", "pin")
        ordering = ("diversity", "rotate", "explore")
        return read_rules(**{name: getattr(self, name) for name in (*names, *ordering)})

    def to_settings(self, *, is_default: bool = True) -> "ListSettings":
        """Return the settings of a list, for the default one with factors and attributes; raises as `read_rules`."""
        from hotplate.offline.attributes import parse_kinds
        from hotplate.offline.lists import ListSettings

        settings = ListSettings(self.list_length, self.keep_seen, self.read_rules(), force=self.force)
        if not is_default:
            return settings
        return replace(
            settings,
            fold_in=self.fold_in,
            attributes=self.item_attributes,
            attribute_kinds=parse_kinds(self.attribute),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFlags(ReleaseFlags):
    """The arguments and flags of `import`."""

    lists: Annotated[
        tuple[Path, ...],
        Argument(
            "Files of user, item, score: CSV, TSV, JSON lines (.gz, .zst), Parquet, folders, or URLs.",
            "[LISTS]",
            urls=True,
        ),
    ] = ()
    user_column: Annotated[str | None, Flag("The column of the user.", INPUT)] = None
    item_column: Annotated[str | None, Flag("The column of the item.", INPUT)] = None
    score_column: Annotated[str | None, Flag("The column of the score.", INPUT)] = None
    title_column: Annotated[str | None, Flag("The column of the title.", INPUT)] = None
    titles: Annotated[Path | None, Flag("A file of item and title, if the lists have no titles.", INPUT, urls=True)] = (
        None
    )
    popular: Annotated[
        Path | None, Flag("A file of popular items: item, score, optional segment.", INPUT, urls=True)
    ] = None
    similar: Annotated[Path | None, Flag("A file of similar items: item, other item, score.", INPUT, urls=True)] = None
    text: TextFormat = field(default_factory=TextFormat)


F = TypeVar("F", PublishFlags, ImportFlags)
# Options that a list of its own cannot have.
OF_THE_RELEASE = {each.name for each in fields(ReleaseFlags)} - {"list_length", "force"} | {"fold_in", "master"}


def read_named(flags: F) -> dict[str, F]:
    """Return the flags of each `--list`, those of *flags* unless its file has others; raises SettingError."""
    from hotplate.offline.errors import SettingError, read_toml

    found = dict[str, F]()
    for text in flags.named:
        name, equals, source = text.partition("=")
        if not equals or not source or name in found:
            raise SettingError(f"--list: {text!r} is not NAME=SOURCE with a new name, such as basket=model2.")
        path = Path(source)
        if path.suffix == ".toml":
            found[name] = named_flags(flags, name, read_toml(path), source, path.absolute().parent)
        else:
            found[name] = _with_source(flags, name, path)
    return found


def named_flags(flags: F, name: str, keys: "Mapping[str, Any]", where: str, folder: Path) -> F:
    """Return *flags* with the *keys* of one list; SettingError as `from_table`."""
    own = from_table(type(flags), keys, where, folder, OF_THE_RELEASE)
    given = {key.replace("-", "_") for key in keys}
    changed = {each.name: getattr(own, each.name) for each in settings_of(type(flags)) if each.key in given}
    return replace(_with_source(flags, name), **changed)


def _with_source(flags: F, name: str, path: Path | None = None) -> F:
    """Return *flags* of the list *name*, made of one source; SettingError for an invalid name."""
    from hotplate.offline.errors import SettingError
    from hotplate.stores.encoding import check_list
    from hotplate.stores.errors import StoreMisused

    try:
        check_list(name)
    except StoreMisused as error:
        raise SettingError(f"--list: {error}.") from error
    if isinstance(flags, PublishFlags):
        return replace(flags, model=path or flags.model)
    return replace(flags, lists=() if path is None else (path,), similar=None, popular=None)


def publish(flags: PublishFlags) -> None:
    """Compute every list of a model and publish them atomically as one release; old releases are erased.

    Exits with 3 if a gate or a running canary keeps the release from going live. By default, gates refuse a release
    that lost more than half of the live users or items.

    Example: hotplate publish model --store file:///var/lib/hotplate

    Filters of requests: hotplate publish model --store file:///var/lib/hotplate --item-attributes items.parquet

    Many users: hotplate publish model --store redis://HOST:6379/0 --master spark://HOST:7077

    Arm B of an experiment: hotplate publish other-model --store file:///var/lib/hotplate --arm B

    Rows, bytes and gates alone: hotplate publish model --store file:///var/lib/hotplate --dry-run

    Several lists, the first is the default: hotplate publish --list home=model --list basket=model2
    """
    from hotplate.offline.errors import SettingError
    from hotplate.offline.publish import names_in_keys

    options = flags.to_options()
    lists = ({} if flags.model is None else {"": flags}) | read_named(flags)
    if not lists or any(each.model is None for each in lists.values()):
        raise SettingError("There is nothing to publish; give a model, or --list NAME=MODEL.")
    if flags.master is not None and flags.named:
        raise SettingError("Named lists are computed in this process; leave out --master.")
    settings = {name: lists[name].to_settings(is_default=not stored) for name, stored in names_in_keys(lists).items()}
    models = {name: str(each.model) for name, each in lists.items()}
    with _folders_of(models) as (folders, uris), _computed_on(flags.master, options) as source:
        publish_lists(
            lambda report: source(_model_lists(folders, settings, report)),
            options,
            on_written=partial(_record, uris, chosen_store(flags.store)),
        )


def _model_lists(
    folders: "Mapping[str, Path]", settings: "Mapping[str, ListSettings]", report: "OnStage"
) -> "ModelLists | NamedLists":
    from hotplate.offline.lists import ModelLists
    from hotplate.offline.model import load
    from hotplate.offline.publish import as_source, names_in_keys

    models = {folder: load(folder) for folder in {*folders.values()}}
    sources = {
        name: ModelLists(models[folders[name]], settings[name], stored).measure(partial(report, "measure"))
        for name, stored in names_in_keys(folders).items()
    }
    return as_source(sources)


@contextmanager
def _folders_of(models: "Mapping[str, str]") -> "Iterator[tuple[dict[str, Path], list[str]]]":
    """Yield the model folders by list, with those of MLflow fetched, and the resolved URIs of the latter."""
    of_mlflow = {name: uri for name, uri in models.items() if uri.startswith(("models:/", "runs:/"))}
    folders = {name: Path(model) for name, model in models.items()}
    if not of_mlflow:
        yield folders, []
        return
    from hotplate.offline import mlflow_models
    from hotplate.stores.folders import temporary_folder

    uris = {name: interruptible(partial(mlflow_models.resolve, uri)) for name, uri in of_mlflow.items()}
    with temporary_folder("model") as scratch:
        for place, (name, uri) in enumerate(uris.items()):
            folders[name] = interruptible(partial(mlflow_models.fetch, uri, scratch / str(place)))
        yield folders, [*uris.values()]


def _record(uris: "Sequence[str]", store: str, release: "ReleaseId") -> None:
    for uri in uris:
        from hotplate.offline import mlflow_models
        from hotplate.offline.errors import DataError

        try:
            mlflow_models.record_release(uri, store, release)
        except DataError as error:  # the release is published
            err.print(f"The release was not recorded in MLflow: {error}")


def import_lists(flags: ImportFlags) -> None:
    """Publish computed lists: rows of user, item and score, in any order; they may exceed memory.

    Rows are sorted in a temporary folder (TMPDIR); each user's list keeps the highest scores. Exits with 3 if a gate or
    a running canary keeps the release from going live, as for `publish`.

    Example: hotplate import lists.parquet --titles titles.csv --store file:///var/lib/hotplate

    Another list in the same release: hotplate import home.parquet --list email=email.parquet
    """
    from hotplate.offline.input.files import named_paths
    from hotplate.offline.list_import import ImportedLists
    from hotplate.offline.publish import as_source, names_in_keys
    from hotplate.stores.folders import temporary_folder

    options = flags.to_options()
    named = read_named(flags)
    has_default = bool(flags.lists or flags.similar or flags.popular or not named)
    lists = ({"": flags} if has_default else {}) | named
    names = names_in_keys(lists)
    settings = {name: _import_settings(each, is_default=not names[name]) for name, each in lists.items()}

    def read(folder: Path, on_progress: "OnStage") -> "ImportedLists | NamedLists":
        found = dict[str, ImportedLists]()
        for place, (name, each) in enumerate(settings.items()):
            (own := folder / str(place)).mkdir()
            found[name] = ImportedLists(each, own, on_progress, names[name])
        return as_source(found)

    first = next(iter(lists.values()))
    with temporary_folder("import") as scratch:
        paths = named_paths(first.lists or [path for path in (first.similar, first.popular) if path is not None][:1])
        publish_lists(partial(read, scratch), options, paths)


def _import_settings(flags: ImportFlags, *, is_default: bool) -> "ImportSettings":
    from hotplate.offline.attributes import parse_kinds
    from hotplate.offline.list_import import ImportSettings

    settings = ImportSettings(
        lists=flags.lists[0] if flags.lists else None,
        more=flags.lists[1:],
        popular=flags.popular,
        similar=flags.similar,
        titles=flags.titles,
        columns={role: getattr(flags, f"{role}_column") for role in ("user", "item", "score", "title")},
        form=flags.text.to_format(),
        length=flags.list_length,
    )
    if not is_default:
        return settings
    return replace(settings, attributes=flags.item_attributes, attribute_kinds=parse_kinds(flags.attribute))


@contextmanager
def _computed_on(
    master: str | None, options: PublishOptions
) -> "Iterator[Callable[[ModelLists | NamedLists], ListSource | PartedSource | NamedLists]]":
    if master is None:
        yield lambda lists: lists
        return
    from hotplate.offline.errors import SettingError
    from hotplate.offline.spark import SparkLists, check_store
    from hotplate.offline.train.spark import spark_session

    if options.dry_run:
        raise SettingError("A dry run computes all lists in this process; leave out --master.")
    url = chosen_store(options.store)
    check_store(url)
    with spark_session(master) as session:
        yield lambda lists: SparkLists(cast("ModelLists", lists), session, url)  # not NamedLists


def publish_lists(
    read: "Callable[[OnStage], ListSource | PartedSource | NamedLists]",
    options: PublishOptions,
    imported: str | None = None,
    on_written: "Callable[[ReleaseId], None]" = lambda _: None,
) -> None:
    """Publish the lists that *read* returns as `write_lists`, or rehearse that for a dry run.

    *on_written* is called with the release, live or not, but not in a dry run. Raises GateFailed or CanaryRunning,
    after printing the result, if one keeps the release from going live.
    """
    if not options.dry_run:
        written = write_lists(read, options, imported)
        on_written(written.result.manifest.release)
        if written.refused is not None:
            raise written.refused
        return
    with progress_bars() as on_progress:
        lists = interruptible(lambda: read(on_progress))
        report = partial(on_progress, "dry run")
        plan, simulated = with_store(options.store, partial(_rehearse, lists, options, report), may_be_new=True)
    _print_dry_run(plan, simulated, options)


def write_lists(
    read: "Callable[[OnStage], ListSource | PartedSource | NamedLists]",
    options: PublishOptions,
    imported: str | None = None,
) -> "Written":
    """Publish the lists that *read* returns, prune old releases, and print the result.

    *imported* names the files of imported lists.
    """
    from hotplate.offline.publish import publish, timed

    with_store(options.store, _check_store, may_be_new=True)
    meter = RequestUnitMeter()
    loading = dict[str, float]()
    with progress_bars(meter.progress) as on_progress:
        with timed(loading, "load"):
            lists = interruptible(lambda: read(on_progress))
        how = options.settings
        report = partial(on_progress, "publish")
        write = partial(publish, lists, settings=how, observer=meter, on_progress=report)
        written = with_store(options.store, write, meter, may_be_new=True)
    _print_release(written, meter, options, imported)
    return replace(written, steps=loading | written.steps)


async def _check_store(store: "Store") -> None:
    from hotplate.stores.store import warnings_of

    await store.catalogue()
    for sentence in await warnings_of(store):
        err.print(f"warning: {sentence}")


async def _rehearse(
    lists: "ListSource | PartedSource | NamedLists", options: PublishOptions, report: "OnProgress", store: "Store"
) -> "tuple[Plan, WriteResult]":
    """Write to a stand-in for *store*, compared with the live release of the store itself."""
    from hotplate.offline.publish import publish
    from hotplate.stores.compression import default_encoding
    from hotplate.stores.publication import rehearse

    how = replace(options.settings, encoding=options.settings.encoding or default_encoding(store), force=True)
    written: list[WriteResult] = []

    async def run(stand_in: "Store") -> "Manifest":
        written.append((await publish(lists, stand_in, how, live_in=store, on_progress=report)).result)
        return written[-1].manifest

    return await rehearse(store, run), written[-1]


def _print_dry_run(plan: "Plan", simulated: "WriteResult", options: PublishOptions) -> None:
    from hotplate.offline.errors import GateFailed
    from hotplate.offline.verdicts import failures, recorded

    verdicts = recorded(simulated.manifest).verdicts
    if options.as_json:
        where = shown_store(options.store, as_json=True)
        facts: dict[str, Any] = {"dry_run": True, "store": where, "rows": plan.rows, "bytes": plan.payload_bytes}
        for name in ("item_attributes", "rules", "metrics"):
            if value := simulated.manifest.about.get(name):
                facts[name] = value
        print_json(facts | ({"gates": verdicts} if verdicts else {}))
    else:
        size = f"{plan.rows:,} rows, {plan.payload_bytes / 1e6:,.1f} MB"
        out.print(f"dry run, nothing is written: {size}, into {shown_store(options.store)}")
        _print_attributes(simulated.manifest)
        _print_measured(simulated.manifest)
        print_gates(simulated.manifest)
    if not options.settings.force and (failed := failures(verdicts)):
        raise GateFailed(f"{failed}; this is a dry run, and nothing was written", simulated)
    if simulated.held_back is not None:
        raise simulated.held_back


def _print_release(written: "Written", meter: RequestUnitMeter, options: PublishOptions, imported: str | None) -> None:
    from hotplate.offline.verdicts import recorded

    manifest = written.result.manifest
    arm = options.settings.arm
    is_active = options.settings.activate and written.refused is None
    read: dict[str, Any] = {"rows": 0, "left_out": {}, "notes": []}
    read |= {name: manifest.about[name] for name in read if name in manifest.about}
    verdicts = recorded(manifest).verdicts
    if options.as_json:
        facts = {
            "store": shown_store(options.store, as_json=True),
            "release": manifest,
            "live": is_active and arm == "A",
            "arm": arm,
            "seconds": round(written.seconds, 3),
            "rows_written_before": written.result.skipped,
            "erased": written.erased,
        }
        origin = {} if imported is None else read
        print_json(origin | facts | ({"gates": verdicts} if verdicts else {}) | meter.to_json())
        return
    if imported is not None:
        print_rows_read(imported, **read)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items() if kind != "meta")
    size = f"{manifest.bytes / 1e6:,.1f} MB"
    state = "ready" if not is_active else "live" if arm == "A" else "arm B"
    where = shown_store(options.store)
    out.print(f"release {manifest.release} is {state} in {where}: {counts} lists, {size}, in {written.seconds:.1f} s")
    if written.result.skipped:
        out.print(f"{written.result.skipped:,} rows had been written before and were not written again")
    for name, listed in rules_of(manifest):
        out.print(f"  {name}: {listed}")
    _print_attributes(manifest)
    _print_measured(manifest)
    print_gates(manifest)
    for release in written.erased:
        out.print(f"erased {release}, which is no longer needed, in {where}")
    meter.print_totals(manifest.rows)


def rules_of(manifest: "Manifest") -> "Iterator[tuple[str, str]]":
    """Yield the name of each rule of a release, and what it counted."""
    for name, counted in manifest.about.get("rules", {}).items():
        yield (
            name.replace("_", " "),
            ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counted.items()),
        )


def _print_measured(manifest: "Manifest") -> None:
    """Print the metrics of lists that rules have changed, next to those of the training."""
    metrics = manifest.about.get("metrics") or {}
    if "as_trained" not in metrics:
        return
    now = metrics["model"]
    before = metrics["as_trained"]["model"]
    out.print(f"  as published, nDCG@{metrics['k']} is {now['ndcg']:.4f}; in training it was {before['ndcg']:.4f}")
    figures = {"coverage": "coverage", "similarity within a list": "list_similarity"}
    if metrics["new_days"] == metrics["as_trained"].get("new_days"):
        figures[f"items of the last {metrics['new_days']} days"] = "new_items"
    shown = [
        f"{text} {now[name]:.4f} ({before[name]:.4f})"
        for text, name in figures.items()
        if name in now and name in before
    ]
    out.print(f"  {', '.join(shown)}")


def _print_attributes(manifest: "Manifest") -> None:
    if attributes := manifest.about.get("item_attributes"):
        kinds = ", ".join(f"{name} ({kind})" for name, kind in attributes["columns"].items())
        out.print(f"  item attributes: {kinds}")
        for note in attributes.get("notes", ()):
            out.print(f"  note: {note}")


def print_gates(manifest: "Manifest") -> None:
    """Print a line for each gate of a release."""
    from hotplate.offline.verdicts import recorded

    gates = recorded(manifest)
    rows = list[tuple[str, ...]]()
    for verdict in gates.verdicts:
        measured = "" if verdict.measured is None else f"{verdict.measured:.4g}"
        bound = f"{'≤' if verdict.at_most else '≥'} {verdict.bound:.4g}"
        failed = "forced" if gates.forced else "failed"
        rows.append((verdict.gate, measured, bound, "passed" if verdict.passed else failed, verdict.note))
    if rows:
        out.print(table(("gate", "measured", "bound", "", ""), rows))
