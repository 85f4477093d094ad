"""`hotplate publish`: from a model folder to a live release; and what it has in common with `hotplate import`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.foretelling import DryRun
from hotplate.cli.foretelling import tell as print_estimate
from hotplate.cli.foretelling import whole as reject_resume
from hotplate.cli.spending import MaxRu, Spending, within
from hotplate.cli.terminal import Json, StageProgress, StoreUrl, option, out, print_json, progress_bars, with_store

if TYPE_CHECKING:
    from offline.publish import ListSource
    from stores.catalogue import ReleaseId
    from stores.forecast import Forecast
    from stores.lifecycle import WriteResult
    from stores.manifest import Manifest
    from stores.store import Plan, Store


class Encoding(StrEnum):
    """How lists are stored."""

    JSON = "json"
    ZSTD = "zstd"


ListLength = Annotated[
    int, option("--list-length", "How many items each list holds at most.", at_least=1, at_most=1000)
]
ChosenEncoding = Annotated[
    Encoding | None,
    option("--encoding", "How lists are stored: by default as json in a file:// store, and as zstd in all others."),
]
Activate = Annotated[bool, option("--activate/--no-activate", "Whether the release goes live once it is written.")]
Keep = Annotated[int, option("--keep", "How many releases before the live one are kept for a rollback.", at_least=0)]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RELEASE",
        help="Continue this draft, which `hotplate releases list` shows; the input and the options must be the same.",
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
        if self.dry_run:
            reject_resume(self.resume)

    def encoding_or_default(self) -> str:
        """Return the chosen encoding, or the one that suits the store."""
        from stores.compression import default_encoding
        from stores.connect import default_url

        return self.encoding.value if self.encoding is not None else default_encoding(self.store or default_url())


@dataclass(frozen=True, slots=True)
class Publication:
    """What a publish wrote, what was erased afterwards, and what it cost."""

    result: "WriteResult"
    live: bool
    seconds: float
    erased: "list[ReleaseId]"
    spending: Spending

    def to_json(self) -> dict[str, object]:
        """Return it for `--json`."""
        return {
            "release": self.result.manifest,
            "live": self.live,
            "seconds": round(self.seconds, 3),
            "rows_written_before": self.result.skipped,
            "erased": self.erased,
        } | self.spending.to_json()

    def print(self) -> None:
        """Print it for people."""
        manifest = self.result.manifest
        counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items() if kind != "meta")
        out.print(
            f"release {manifest.release} is {'live' if self.live else 'ready'}: {counts} lists, "
            f"{manifest.bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s",
            markup=False,
        )
        if self.result.skipped:
            out.print(f"{self.result.skipped:,} rows had been written before and were not written again", markup=False)
        for release in self.erased:
            out.print(f"erased {release}, which nobody needs any more", markup=False)
        self.spending.show(plan_of(manifest))


def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, as `hotplate train` writes it.")],
    store: StoreUrl = None,
    list_length: ListLength = 20,
    keep_seen: Annotated[
        bool,
        option("--keep-seen/--no-keep-seen", "Whether a user's list may contain items that the user has already."),
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

    Releases that nobody needs any more are erased afterwards.

    Example: hotplate publish model --store file:///var/lib/hotplate

    Before you pay: hotplate publish model --store cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from offline.lists import ListSettings, ModelLists
    from offline.model import load

    options = PublishOptions(within(store, max_ru), encoding, activate, keep, resume, dry_run, as_json)
    lists = ModelLists(load(model), ListSettings(list_length, keep_seen))
    spending = Spending()
    with progress_bars(spending.progress) as on_progress:
        outcome = publish_lists(lists, options, spending, on_progress)
    if isinstance(outcome, Publication) and as_json:
        print_json(outcome.to_json())
    elif isinstance(outcome, Publication):
        outcome.print()
    else:
        print_estimate(outcome, options.store, as_json=as_json)


def publish_lists(
    lists: "ListSource", options: PublishOptions, spending: Spending, on_progress: StageProgress
) -> "Publication | Forecast":
    """Publish *lists* and erase what nobody needs any more; or, for a dry run, say what that would come to."""
    from offline.publish import publish as write
    from stores.catalogue import ReleaseId
    from stores.lifecycle import prune

    if options.dry_run:
        return _estimate(lists, options, on_progress)
    started = perf_counter()

    async def act(opened: "Store") -> Publication:
        spending.watch(opened, lists.plan(), quiet=options.as_json)
        result = await write(
            lists,
            opened,
            encoding=options.encoding_or_default(),
            live=options.activate,
            resume=ReleaseId(options.resume) if options.resume else None,
            on_progress=lambda done, total: on_progress("publish", done, total),
        )
        seconds = perf_counter() - started
        return Publication(result, options.activate, seconds, await prune(opened, keep=options.keep), spending)

    return with_store(options.store, act, spending)


def _estimate(lists: "ListSource", options: PublishOptions, on_progress: StageProgress) -> "Forecast":
    from offline.foreseeing import foresee_rows

    return with_store(
        options.store,
        lambda opened: foresee_rows(
            lists.batches(),
            opened,
            plan=lists.plan(),
            about=lists.about(),
            encoding=options.encoding_or_default(),
            live=options.activate,
            keep=options.keep,
            on_progress=lambda done, total: on_progress("dry run", done, total),
        ),
    )


def plan_of(manifest: "Manifest") -> "Plan":
    """Return how many rows and bytes a release has, as a plan."""
    from stores.store import Plan

    return Plan(manifest.rows, manifest.bytes)
