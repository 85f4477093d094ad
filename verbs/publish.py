"""`hotplate publish`: from a model folder to a live release."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verbs.opening import with_store
from verbs.progress import bars
from verbs.terminal import Json, StoreUrl, out, print_json

if TYPE_CHECKING:
    from offline.publish import PublishReport
    from stores.catalogue import ReleaseId
    from stores.store import Store


def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, as `hotplate train` writes it.")],
    store: StoreUrl = None,
    list_length: Annotated[
        int, typer.Option(min=1, max=1000, envvar="HOTPLATE_LIST_LENGTH", help="Items stored per list.")
    ] = 20,
    keep_seen: Annotated[
        bool, typer.Option(envvar="HOTPLATE_KEEP_SEEN", help="Let lists name what the user has already.")
    ] = False,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", envvar="HOTPLATE_ACTIVATE", help="Make the release live.")
    ] = True,
    keep: Annotated[
        int, typer.Option(min=0, envvar="HOTPLATE_KEEP", help="How many releases before the live one stay.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Compute every list of a model and publish them as one release; readers see all of it, or nothing.

    Releases that nobody needs any more are erased afterwards.

    Example: hotplate publish model --store file:///var/lib/hotplate
    """
    from offline.lists import ListSettings
    from offline.model import load
    from offline.publish import publish as write
    from stores.release import prune

    settings = ListSettings(list_length, keep_seen)
    learnt = load(model)
    with bars() as tell:

        async def act(opened: "Store") -> "tuple[PublishReport, list[ReleaseId]]":
            done = await write(
                learnt, opened, settings, live=activate, on_progress=lambda done, total: tell("publish", done, total)
            )
            return done, await prune(opened, keep=keep)

        report, erased = with_store(store, act)
    if as_json:
        print_json(
            {"release": report.manifest, "live": activate, "seconds": round(report.seconds, 3), "erased": erased}
        )
        return
    show(report)
    for release in erased:
        out.print(f"erased {release}, which nobody needs any more", markup=False)


def show(report: "PublishReport") -> None:
    """Print what was published."""
    manifest = report.manifest
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items())
    out.print(
        f"release {manifest.release} is {'live' if report.live else 'ready'}: {counts} lists, "
        f"{manifest.bytes / 1e6:,.1f} MB, in {report.seconds:.1f} s",
        markup=False,
    )
