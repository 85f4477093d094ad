"""`hotplate publish`: from a model folder to a live release."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli import foretelling
from hotplate.cli.foretelling import DryRun
from hotplate.cli.opening import with_store
from hotplate.cli.progress import bars
from hotplate.cli.spending import MaxRu, Spending, within
from hotplate.cli.terminal import Json, StoreUrl, out, print_json

if TYPE_CHECKING:
    from offline.publish import PublishReport
    from stores.catalogue import ReleaseId
    from stores.manifest import Manifest
    from stores.store import Plan, Store


class Encoding(StrEnum):
    """How lists are stored."""

    JSON = "json"
    ZSTD = "zstd"


ListLength = Annotated[int, typer.Option(min=1, max=1000, envvar="HOTPLATE_LIST_LENGTH", help="Items stored per list.")]
ChosenEncoding = Annotated[
    Encoding | None,
    typer.Option(
        "--encoding",
        envvar="HOTPLATE_ENCODING",
        help="How lists are stored; by default json in a file:// store, zstd in all others.",
        show_default=False,
    ),
]
Activate = Annotated[
    bool, typer.Option("--activate/--no-activate", envvar="HOTPLATE_ACTIVATE", help="Make the release live.")
]
Keep = Annotated[int, typer.Option(min=0, envvar="HOTPLATE_KEEP", help="How many releases before the live one stay.")]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RELEASE",
        help="Go on with this draft, as `hotplate releases list` shows it, of the same input and options.",
        show_default=False,
    ),
]


def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, as `hotplate train` writes it.")],
    store: StoreUrl = None,
    list_length: ListLength = 20,
    keep_seen: Annotated[
        bool, typer.Option(envvar="HOTPLATE_KEEP_SEEN", help="Let lists name what the user has already.")
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
    from offline.lists import Lists, ListSettings
    from offline.model import load
    from offline.publish import publish as write
    from stores.catalogue import ReleaseId
    from stores.lifecycle import prune

    store, settings = within(store, max_ru), ListSettings(list_length, keep_seen)
    learnt = load(model)
    if dry_run:
        from offline.foreseeing import foresee

        foretelling.whole(resume)
        with bars() as tell:
            found = with_store(
                store,
                lambda opened: foresee(
                    learnt,
                    opened,
                    settings,
                    encoding=encoding_of(encoding, store),
                    live=activate,
                    keep=keep,
                    on_progress=lambda done, total: tell("dry run", done, total),
                ),
            )
        foretelling.tell(found, store, as_json=as_json)
        return
    spending = Spending()
    with bars(spending.progress) as tell:

        async def act(opened: "Store") -> "tuple[PublishReport, list[ReleaseId]]":
            spending.watch(opened, Lists(learnt, settings).plan(), quiet=as_json)
            done = await write(
                learnt,
                opened,
                settings,
                encoding=encoding_of(encoding, store),
                live=activate,
                resume=ReleaseId(resume) if resume else None,
                on_progress=lambda done, total: tell("publish", done, total),
            )
            return done, await prune(opened, keep=keep)

        report, erased = with_store(store, act, spending)
    if as_json:
        print_json(to_json(report, erased) | spending.to_json())
        return
    show(report, erased)
    spending.show(plan_of(report.manifest))


def encoding_of(chosen: Encoding | None, store: str | None) -> str:
    """Return the encoding that was asked for, or the one that suits the store."""
    from stores.compression import default_encoding
    from stores.connect import default_url

    return chosen.value if chosen is not None else default_encoding(store or default_url())


def plan_of(manifest: "Manifest") -> "Plan":
    """Return how much a release is, as a plan has it."""
    from stores.store import Plan

    return Plan(sum(manifest.counts.values()), manifest.bytes)


def to_json(report: "PublishReport", erased: "list[ReleaseId]") -> dict[str, object]:
    """Return what was published, and what was erased afterwards, for `--json`."""
    return {
        "release": report.manifest,
        "live": report.live,
        "seconds": round(report.seconds, 3),
        "rows_written_before": report.skipped,
        "erased": erased,
    }


def show(report: "PublishReport", erased: "list[ReleaseId]") -> None:
    """Print what was published, and what was erased afterwards."""
    manifest = report.manifest
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items() if kind != "meta")
    out.print(
        f"release {manifest.release} is {'live' if report.live else 'ready'}: {counts} lists, "
        f"{manifest.bytes / 1e6:,.1f} MB, in {report.seconds:.1f} s",
        markup=False,
    )
    if report.skipped:
        out.print(f"{report.skipped:,} rows had been written before and were not written again", markup=False)
    for release in erased:
        out.print(f"erased {release}, which nobody needs any more", markup=False)
