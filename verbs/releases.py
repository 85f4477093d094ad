"""`hotplate releases`: list, show, activate, roll back, prune and verify."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from verbs.opening import with_store
from verbs.terminal import Json, StoreUrl, out, print_json, table

if TYPE_CHECKING:
    from stores.manifest import Manifest
    from stores.store import Store

app = typer.Typer(no_args_is_help=True, help="The life of releases: list, show, activate, roll back, prune, verify.")

ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="An id, as `hotplate releases list` shows it.")]


@app.command("list")
def show_all(store: StoreUrl = None, as_json: Json = False) -> None:
    """List the releases of a store, in the order in which they came to be.

    Example: hotplate releases list --store file:///var/lib/hotplate
    """
    found = with_store(store, lambda opened: opened.catalogue())
    if as_json:
        print_json({"live": found.live, "generation": found.generation, "releases": found.releases})
        return
    rows = [(entry.id, entry.state, _time(entry.created_at), _time(entry.superseded_at)) for entry in found.releases]
    if rows:
        out.print(table(("release", "state", "begun", "left service"), rows))
    else:
        out.print("no releases yet; `hotplate publish MODEL` makes one")


@app.command()
def show(release: ReleaseArgument, store: StoreUrl = None, as_json: Json = False) -> None:
    """Show what a release says of itself.

    Example: hotplate releases show 20261120T064200Z-7f3a
    """
    from stores.catalogue import ReleaseId
    from stores.release import load_manifest

    async def read(opened: "Store") -> "Manifest":
        (await opened.catalogue()).find(ReleaseId(release))
        return await load_manifest(opened, ReleaseId(release))

    manifest = with_store(store, read)
    if as_json:
        print_json(manifest)
        return
    counts = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items())
    facts = [
        ("release", manifest.release),
        ("written", _time(manifest.created_at)),
        ("rows", counts),
        ("bytes", f"{manifest.bytes:,}"),
        ("encoding", manifest.encoding),
        ("digest", manifest.digest),
        ("segments", len(manifest.segments)),
        *manifest.about.items(),
    ]
    out.print(table(("", ""), facts))


@app.command()
def activate(release: ReleaseArgument, store: StoreUrl = None, as_json: Json = False) -> None:
    """Make a committed release live.

    Example: hotplate releases activate 20261120T064200Z-7f3a
    """
    from stores.catalogue import ReleaseId
    from stores.release import activate as act

    with_store(store, lambda opened: act(opened, ReleaseId(release)))
    _tell({"live": release}, f"{release} is live", as_json=as_json)


@app.command()
def rollback(store: StoreUrl = None, as_json: Json = False) -> None:
    """Make the release that was live before the live one live again; no data moves.

    Example: hotplate releases rollback
    """
    from stores.release import rollback as roll_back

    release = with_store(store, roll_back)
    _tell({"live": release}, f"{release} is live again", as_json=as_json)


@app.command()
def prune(
    store: StoreUrl = None,
    keep: Annotated[
        int, typer.Option(min=0, envvar="HOTPLATE_KEEP", help="How many releases before the live one stay.")
    ] = 1,
    grace: Annotated[
        float, typer.Option(min=0, envvar="HOTPLATE_GRACE", help="Seconds that a release stays after it left service.")
    ] = 600,
    as_json: Json = False,
) -> None:
    """Erase what nobody needs: old releases past their grace, and drafts whose writer is gone.

    Example: hotplate releases prune --keep 2
    """
    from stores.release import prune as erase

    dropped = with_store(store, lambda opened: erase(opened, keep=keep, grace_s=grace))
    _tell(
        {"erased": dropped},
        "\n".join(f"erased {release}" for release in dropped) or "nothing to erase",
        as_json=as_json,
    )


@app.command()
def verify(
    release: Annotated[str | None, typer.Argument(metavar="[RELEASE]", help="By default the live release.")] = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Read every row of a release and check counts, bytes and digest against its manifest.

    Example: hotplate releases verify
    """
    from stores.catalogue import ReleaseId
    from stores.errors import ReleaseNotFound
    from stores.release import verify as check

    async def read(opened: "Store") -> "Manifest":
        found = await opened.catalogue()
        chosen = ReleaseId(release) if release is not None else found.live
        if chosen is None:
            raise ReleaseNotFound("nothing is live in this store; name a release, or publish one")
        found.find(chosen)
        return await check(opened, chosen)

    manifest = with_store(store, read)
    rows = sum(manifest.counts.values())
    _tell(manifest, f"{manifest.release} is whole: {rows:,} rows, {manifest.bytes:,} bytes", as_json=as_json)


def _tell(fields: object, sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json(fields)
    else:
        out.print(sentence, markup=False)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
