"""`hotplate publish`: from a model folder to a live release; and what it has in common with `hotplate import`."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hotplate.cli.costs import DryRun, MaxRu, Spending, limit_ru, print_estimate
from hotplate.cli.models import RegistryUrl, in_registry, is_reference
from hotplate.cli.terminal import (
    Json,
    Master,
    StageProgress,
    StoreUrl,
    chosen_store,
    err,
    interruptible,
    option,
    out,
    print_json,
    print_rows_read,
    progress_bars,
    table,
    with_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from offline.gates import Verdict
    from offline.lists import ModelLists
    from offline.publish import ListSource, Progress, PublishSettings, Written
    from stores.catalogue import ReleaseId
    from stores.lifecycle import WriteResult
    from stores.manifest import Manifest
    from stores.store import Estimate, Plan, Store


Encoding = Literal["json", "zstd"]
ListLength = Annotated[
    int, option("--list-length", "Keep at most this many items in each list.", at_least=1, at_most=1000)
]
ChosenEncoding = Annotated[
    Encoding | None,
    option(
        "--encoding", "Store lists in this encoding. By default it is json in a file:// store, and zstd in all others."
    ),
]
Activate = Annotated[bool, option("--activate/--no-activate", "Make the release live once it is written.")]
Keep = Annotated[int, option("--keep", "Keep this many releases before the live one for a rollback.", at_least=0)]
Resume = Annotated[
    str | None,
    option(
        "--resume",
        "Continue this draft, which `hotplate releases list` shows; the input and the options must be the same.",
        metavar="RELEASE",
        env=False,
    ),
]
GatesFile = Annotated[
    Path | None,
    option("--gates", "Let the release go live only if it holds the bounds of this TOML file.", metavar="FILE"),
]
GateBounds = Annotated[
    list[str] | None,
    option(
        "--gate",
        "Let the release go live only if it holds this bound: ndcg=0.2, drop.ndcg=0.05, coverage=0.3, overlap=0.2. "
        "It may be given several times, and comes before the file's.",
        metavar="NAME=BOUND",
    ),
]
Force = Annotated[
    bool, option("--force", "Make the release live even if a gate fails; the release records that.", env=False)
]
EndCanary = Annotated[
    bool, option("--end-canary", "Make the release live even if another one is the canary; that ends.", env=False)
]
Available = Annotated[
    Path | None, option("--available", "Recommend only items that this file names, a catalogue say.", metavar="FILE")
]
Exclude = Annotated[Path | None, option("--exclude", "Never recommend items that this file names.", metavar="FILE")]
Categories = Annotated[
    Path | None,
    option("--categories", "Read the categories of items from this file of item and category.", metavar="FILE"),
]
MaxPerCategory = Annotated[
    int | None,
    option("--max-per-category", "Keep at most this many items of a category in each list.", at_least=1),
]
Boost = Annotated[
    Path | None,
    option("--boost", "Multiply the scores of items by the numbers in this file of item and boost.", metavar="FILE"),
]
Freshness = Annotated[
    str | None,
    option(
        "--freshness",
        "Halve the scores of an item for each 30d, 12h or 8w that have passed since its first interaction.",
        metavar="TIME",
    ),
]
Pin = Annotated[
    Path | None,
    option("--pin", "Put the items that this file names first in every list, in its order.", metavar="FILE"),
]
FoldIn = Annotated[
    bool,
    option(
        "--fold-in/--no-fold-in",
        "Publish the factors of the items, too, from which `hotplate serve --fold-in` makes lists for visitors on the "
        "spot: 4 bytes for each factor of each item.",
    ),
]
MinHistory = Annotated[
    int,
    option(
        "--min-history", "Give users with fewer items than this no list of their own, but the popular one.", at_least=1
    ),
]


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """The options of a publish; raises StoreMisused for a dry run of a draft. Lives as long as the command."""

    store: str | None
    settings: "PublishSettings"
    dry_run: bool
    as_json: bool

    def __post_init__(self) -> None:
        from stores.errors import StoreMisused

        if self.dry_run and self.settings.resume is not None:
            raise StoreMisused("--dry-run estimates a whole publish, and not the rest of a draft; leave --resume out")


def publish(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A model folder, as `hotplate train` writes it, or NAME@VERSION or NAME@STAGE of the registry.",
        ),
    ],
    store: StoreUrl = None,
    registry: RegistryUrl = None,
    list_length: ListLength = 20,
    keep_seen: Annotated[
        bool,
        option("--keep-seen/--no-keep-seen", "Let a user's list contain items that the user has already."),
    ] = False,
    available: Available = None,
    exclude: Exclude = None,
    categories: Categories = None,
    max_per_category: MaxPerCategory = None,
    min_history: MinHistory = 1,
    boost: Boost = None,
    freshness: Freshness = None,
    pin: Pin = None,
    fold_in: FoldIn = False,
    encoding: ChosenEncoding = None,
    activate: Activate = True,
    keep: Keep = 1,
    resume: Resume = None,
    gates: GatesFile = None,
    gate: GateBounds = None,
    force: Force = False,
    end_canary: EndCanary = False,
    max_ru: MaxRu = None,
    master: Master = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compute every list of a model and publish them as one release; readers see all of it, or nothing.

    Releases that are no longer needed are erased afterwards. Exits with 3 if a gate, or a canary that runs, keeps the
    release from going live.

    Example: hotplate publish model --store file:///var/lib/hotplate

    Many users: hotplate publish model --store redis://HOST:6379/0 --master spark://HOST:7077

    Before you pay: hotplate publish model --store cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from offline.gates import read_gates
    from offline.lists import ListSettings, ModelLists
    from offline.model import load
    from offline.publish import PublishSettings
    from offline.rules import read_rules
    from stores.folders import temporary_folder

    url, bounds = limit_ru(store, max_ru), read_gates(gates, gate or ())
    how = PublishSettings(encoding, activate, keep, resume, bounds, force, end_canary)
    options = PublishOptions(url, how, dry_run, as_json)
    rules = read_rules(
        available, exclude, categories, max_per_category, min_history, boost=boost, freshness=freshness, pin=pin
    )
    settings = ListSettings(list_length, keep_seen, rules, fold_in)

    def read(folder: Path, report: StageProgress) -> ModelLists:
        return ModelLists(load(folder), settings).measure(partial(report, "measure"))

    if not is_reference(model):
        with _computed_on(master, options) as source:
            publish_lists(lambda report: source(read(model, report)), options)
        return

    def record(release: "ReleaseId") -> None:
        in_registry(registry, lambda opened: opened.record_release(entry.reference, chosen_store(store), release))

    with temporary_folder("model") as scratch, _computed_on(master, options) as source:
        entry = in_registry(registry, lambda opened: opened.pull(str(model), scratch / "model"))
        publish_lists(lambda report: source(read(scratch / "model", report)), options, on_written=record)


@contextmanager
def _computed_on(master: str | None, options: PublishOptions) -> "Iterator[Callable[[ModelLists], ListSource]]":
    """Yield what makes a source of the lists of a model: themselves, or those that *master* computes."""
    if master is None:
        yield lambda lists: lists
        return
    from offline.errors import SettingError
    from offline.spark.publication import SparkLists, check_store
    from offline.spark.session import SUBMITTED, spark_session

    if options.dry_run:
        raise SettingError("A dry run writes to a stand-in of the store in this process; leave out --master.")
    url = chosen_store(options.store)
    if master != SUBMITTED:  # else its own is known once it has started
        check_store(url, master)
    with spark_session(master) as session:
        yield lambda lists: SparkLists(lists, session, url)


def publish_lists(
    read: "Callable[[StageProgress], ListSource]",
    options: PublishOptions,
    imported: str | None = None,
    on_written: "Callable[[ReleaseId], None]" = lambda _: None,
) -> None:
    """Publish the lists that *read* returns as `write_lists` does, or estimate it.

    *on_written* is called with the release, be it live or not. Raises GateFailed or CanaryRunning once a release is
    printed that gates or a canary keep from going live.
    """
    if not options.dry_run:
        written = write_lists(read, options, imported)
        on_written(written.result.manifest.release)
        if written.refused is not None:
            raise written.refused
        return
    with progress_bars() as on_progress:
        lists, report = interruptible(lambda: read(on_progress)), partial(on_progress, "dry run")
        estimated, simulated = with_store(options.store, partial(_estimate, lists, options, report))
    _print_dry_run(estimated, simulated, options)


def write_lists(
    read: "Callable[[StageProgress], ListSource]", options: PublishOptions, imported: str | None = None
) -> "Written":
    """Publish the lists that *read* returns, erase what is no longer needed, and print that.

    *imported* names the files of the lists, if they were not computed here; the rows that were read are counted.
    """
    from offline.publish import publish, timed

    with_store(options.store, _check_store)
    spending, loading = Spending(), dict[str, float]()
    with progress_bars(spending.progress) as on_progress:
        with timed(loading, "load"):
            lists = interruptible(lambda: read(on_progress))

        async def write(store: "Store") -> "Written":
            spending.watch(store, lists.plan(), quiet=options.as_json)
            how, report = options.settings, partial(on_progress, "publish")
            return await publish(lists, store, how, observer=spending, on_progress=report)

        written = with_store(options.store, write, spending)
    _print_release(written, spending, options, imported)
    return replace(written, steps=loading | written.steps)


async def _check_store(store: "Store") -> None:
    """Raise StoreError for a store that cannot be read, before any work is done for it; print what it warns of."""
    from stores.errors import StoreError
    from stores.store import Diagnosed

    await store.catalogue()
    try:
        warnings = await store.warnings() if isinstance(store, Diagnosed) else []
    except StoreError as error:
        warnings = [f"the store's set-up cannot be read: {error}"]
    for sentence in warnings:
        err.print(f"warning: {sentence}")


async def _estimate(
    lists: "ListSource", options: PublishOptions, report: "Progress", store: "Store"
) -> "tuple[Estimate, WriteResult]":
    """Write to a stand-in for *store*; what is live is read from the store itself."""
    from offline.publish import publish
    from stores.compression import default_encoding
    from stores.estimate import estimate

    # No gate refuses anything in a dry run.
    how = replace(options.settings, encoding=options.settings.encoding or default_encoding(store), force=True)
    written: list[WriteResult] = []

    async def run(stand_in: "Store") -> "Manifest":
        written.append((await publish(lists, stand_in, how, live_in=store, on_progress=report)).result)
        return written[-1].manifest

    return await estimate(store, run, live=how.activate), written[-1]


def _print_dry_run(estimated: "Estimate", simulated: "WriteResult", options: PublishOptions) -> None:
    """Print an estimate, and what the gates say.

    Raises GateFailed or CanaryRunning if gates or a canary would keep the release from going live.
    """
    from offline.errors import GateFailed
    from offline.gates import failures, recorded

    _, verdicts = recorded(simulated.manifest)
    more = {"gates": verdicts} if verdicts else {}
    print_estimate(estimated, options.store, as_json=options.as_json, more=more)
    if not options.as_json:
        _print_gates(verdicts, forced=options.settings.force)
    if not options.settings.force and (failed := failures(verdicts)):
        raise GateFailed(f"{failed}; this is a dry run, and nothing was written", simulated)
    if simulated.held_back is not None:
        raise simulated.held_back


def _print_release(written: "Written", spending: Spending, options: PublishOptions, imported: str | None) -> None:
    """Print what was written, what gates said, what was erased afterwards, and what it cost."""
    from offline.gates import recorded

    manifest, live = written.result.manifest, options.settings.activate and written.refused is None
    read: dict[str, Any] = {"rows": 0, "left_out": {}, "notes": []}
    read |= {name: manifest.about[name] for name in read if name in manifest.about}
    forced, verdicts = recorded(manifest)
    if options.as_json:
        facts = {
            "release": manifest,
            "live": live,
            "seconds": round(written.seconds, 3),
            "rows_written_before": written.result.skipped,
            "erased": written.erased,
        }
        origin = {} if imported is None else read
        print_json(origin | facts | ({"gates": verdicts} if verdicts else {}) | spending.to_json())
        return
    if imported is not None:
        print_rows_read(imported, **read)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items() if kind != "meta")
    size = f"{manifest.bytes / 1e6:,.1f} MB"
    state = "live" if live else "ready"
    out.print(f"release {manifest.release} is {state}: {counts} lists, {size}, in {written.seconds:.1f} s")
    if written.result.skipped:
        out.print(f"{written.result.skipped:,} rows had been written before and were not written again")
    _print_rules(manifest.about.get("rules", {}))
    _print_metrics(manifest.about.get("metrics"))
    _print_gates(verdicts, forced=forced)
    for release in written.erased:
        out.print(f"erased {release}, which is no longer needed")
    spending.print_totals(plan_of(manifest))


def _print_rules(rules: "dict[str, dict[str, int]]") -> None:
    """Print what business rules left out, and what they name that the model lacks; nothing if there were none."""
    for name, facts in rules.items():
        counts = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in facts.items())
        out.print(f"  {name.replace('_', ' ')}: {counts}")


def _print_metrics(metrics: "dict[str, Any] | None") -> None:
    """Print how well lists rank that rank in another way than when the model was trained."""
    if metrics and "as_trained" in metrics:
        now, before = (found["model"]["ndcg"] for found in (metrics, metrics["as_trained"]))
        out.print(f"  as published, nDCG@{metrics['k']} is {now:.4f}; in training it was {before:.4f}")


def _print_gates(verdicts: "list[Verdict]", *, forced: bool) -> None:
    """Print a line for each gate; nothing if there were none."""
    rows = [
        (
            verdict.gate,
            "" if verdict.measured is None else f"{verdict.measured:.4g}",
            f"{'≤' if verdict.at_most else '≥'} {verdict.bound:.4g}",
            "passed" if verdict.passed else "forced" if forced else "failed",
            verdict.note,
        )
        for verdict in verdicts
    ]
    if rows:
        out.print(table(("gate", "measured", "bound", "", ""), rows))


def plan_of(manifest: "Manifest") -> "Plan":
    """Return how many rows and bytes a release has, as a plan."""
    from stores.store import Plan

    return Plan(manifest.rows, manifest.bytes)
