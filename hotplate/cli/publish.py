"""`hotplate publish`: from a model folder to a live release; and what it has in common with `hotplate import`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hotplate.cli.costs import DryRun, MaxRu, Spending, limit_ru, print_estimate
from hotplate.cli.models import RegistryUrl, in_registry, is_reference
from hotplate.cli.terminal import (
    Json,
    StageProgress,
    StoreUrl,
    chosen_store,
    interruptible,
    option,
    out,
    print_json,
    print_rows_read,
    progress_bars,
    with_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from offline.publish import ListSource
    from stores.catalogue import ReleaseId
    from stores.lifecycle import WriteResult
    from stores.manifest import Manifest
    from stores.store import Plan, Store


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


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """The options of a publish; raises StoreMisused for a dry run of a draft. Lives as long as the command."""

    store: str | None
    encoding: Encoding | None
    activate: bool
    keep: int
    resume: str | None
    dry_run: bool
    as_json: bool

    def __post_init__(self) -> None:
        from stores.errors import StoreMisused

        if self.dry_run and self.resume is not None:
            raise StoreMisused("--dry-run estimates a whole publish, and not the rest of a draft; leave --resume out")

    def encoding_or_default(self) -> str:
        """Return the chosen encoding, or the one that suits the store."""
        from stores.compression import default_encoding

        return self.encoding or default_encoding(chosen_store(self.store))


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
    encoding: ChosenEncoding = None,
    activate: Activate = True,
    keep: Keep = 1,
    resume: Resume = None,
    max_ru: MaxRu = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compute every list of a model and publish them as one release; readers see all of it, or nothing.

    Releases that are no longer needed are erased afterwards.

    Example: hotplate publish model --store file:///var/lib/hotplate

    Before you pay: hotplate publish model --store cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from offline.lists import ListSettings, ModelLists
    from offline.model import load
    from stores.folders import temporary_folder

    options = PublishOptions(limit_ru(store, max_ru), encoding, activate, keep, resume, dry_run, as_json)
    settings = ListSettings(list_length, keep_seen)
    if not is_reference(model):
        publish_lists(lambda _: ModelLists(load(model), settings), options)
        return
    with temporary_folder("model") as scratch:
        entry = in_registry(registry, lambda opened: opened.pull(str(model), scratch / "model"))
        result = publish_lists(lambda _: ModelLists(load(scratch / "model"), settings), options)
    if result is not None:
        release, url = result.manifest.release, chosen_store(store)
        in_registry(registry, lambda opened: opened.record_release(entry.reference, url, release))


def publish_lists(
    read: "Callable[[StageProgress], ListSource]", options: PublishOptions, imported: Path | None = None
) -> "WriteResult | None":
    """Publish the lists that *read* returns, erase what is no longer needed, and print that; or estimate it: None.

    *imported* is the path of the lists, where they were not computed here; the rows that were read there are counted.
    """
    from offline.publish import publish as write
    from stores.catalogue import ReleaseId
    from stores.estimate import estimate
    from stores.lifecycle import prune

    encoding, resume = options.encoding_or_default(), ReleaseId(options.resume) if options.resume else None
    spending, stage = Spending(), "dry run" if options.dry_run else "publish"
    with progress_bars(spending.progress) as on_progress:
        lists, report = interruptible(lambda: read(on_progress)), partial(on_progress, stage)
        started = perf_counter()

        async def act(opened: "Store") -> "tuple[WriteResult, float, list[ReleaseId]]":
            live = options.activate
            result = await write(lists, opened, encoding=encoding, live=live, resume=resume, on_progress=report)
            return result, perf_counter() - started, await prune(opened, keep=options.keep)

        async def simulate(opened: "Store") -> "Manifest":
            return (await act(opened))[0].manifest

        async def watch_and_act(opened: "Store") -> "tuple[WriteResult, float, list[ReleaseId]]":
            spending.watch(opened, lists.plan(), quiet=options.as_json)
            return await act(opened)

        if options.dry_run:
            estimated = with_store(options.store, lambda opened: estimate(opened, simulate, live=options.activate))
        else:
            result, seconds, erased = with_store(options.store, watch_and_act, spending)
    if options.dry_run:
        print_estimate(estimated, options.store, as_json=options.as_json)
        return None
    _print_release(result, seconds, erased, spending, options, imported)
    return result


def _print_release(
    result: "WriteResult",
    seconds: float,
    erased: "list[ReleaseId]",
    spending: Spending,
    options: PublishOptions,
    imported: Path | None,
) -> None:
    """Print what was written, what was erased afterwards, and what it cost."""
    manifest = result.manifest
    rows_read, left_out = manifest.about.get("rows", 0), manifest.about.get("left_out", {})
    if options.as_json:
        facts = {
            "release": manifest,
            "live": options.activate,
            "seconds": round(seconds, 3),
            "rows_written_before": result.skipped,
            "erased": erased,
        }
        origin = {} if imported is None else {"rows": rows_read, "left_out": left_out}
        print_json(origin | facts | spending.to_json())
        return
    if imported is not None:
        print_rows_read(rows_read, imported, left_out)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items() if kind != "meta")
    state = "live" if options.activate else "ready"
    size = f"{manifest.bytes / 1e6:,.1f} MB"
    out.print(f"release {manifest.release} is {state}: {counts} lists, {size}, in {seconds:.1f} s")
    if result.skipped:
        out.print(f"{result.skipped:,} rows had been written before and were not written again")
    for release in erased:
        out.print(f"erased {release}, which is no longer needed")
    spending.print_totals(plan_of(manifest))


def plan_of(manifest: "Manifest") -> "Plan":
    """Return how many rows and bytes a release has, as a plan."""
    from stores.store import Plan

    return Plan(manifest.rows, manifest.bytes)
