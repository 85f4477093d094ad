"""`hotplate releases`: list, show, activate, roll back, prune and copy; `verbs.inspection` adds verify and diff."""

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli import foretelling, inspection
from hotplate.cli.foretelling import DryRun
from hotplate.cli.inspection import ChosenRelease, choose, tell_one
from hotplate.cli.opening import with_store, with_stores
from hotplate.cli.progress import bars
from hotplate.cli.publish import plan_of
from hotplate.cli.spending import MaxRu, Spending, within
from hotplate.cli.terminal import Json, StoreUrl, out, print_json, table

if TYPE_CHECKING:
    from stores.forecast import Forecast
    from stores.lifecycle import WriteResult
    from stores.manifest import Manifest
    from stores.store import Store

app = typer.Typer(
    no_args_is_help=True, help="The life of releases: list, activate, roll back, prune, copy, verify and compare."
)

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
    from stores.verification import load_manifest

    async def read(opened: "Store") -> "Manifest":
        return await load_manifest(opened, (await opened.catalogue()).find(ReleaseId(release)).ref)

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
    from stores.lifecycle import activate as act

    with_store(store, lambda opened: act(opened, ReleaseId(release)))
    tell_one({"live": release}, f"{release} is live", as_json=as_json)


@app.command()
def rollback(store: StoreUrl = None, as_json: Json = False) -> None:
    """Make the release that was live before the live one live again; no data moves.

    Example: hotplate releases rollback
    """
    from stores.lifecycle import rollback as roll_back

    release = with_store(store, roll_back)
    tell_one({"live": release}, f"{release} is live again", as_json=as_json)


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
    from stores.lifecycle import prune as erase

    dropped = with_store(store, lambda opened: erase(opened, keep=keep, grace_s=grace))
    tell_one(
        {"erased": dropped},
        "\n".join(f"erased {release}" for release in dropped) or "nothing to erase",
        as_json=as_json,
    )


@app.command()
def copy(
    source: Annotated[
        str, typer.Option("--from", metavar="URL", envvar="HOTPLATE_FROM", help="The store that has the release.")
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="URL", envvar="HOTPLATE_TO", help="The store that is to have it.")
    ],
    release: ChosenRelease = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", envvar="HOTPLATE_ACTIVATE", help="Make it live there.")
    ] = True,
    max_ru: MaxRu = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy a release, by default the live one, to another store under the same id; check it and make it live there.

    A copy that was killed goes on where it was acknowledged: give the same command again.

    Example: hotplate releases copy --from file:///var/lib/hotplate --to redis://localhost:6379/0

    Before you pay: hotplate releases copy --from URL --to cosmos://ACCOUNT/DATABASE --max-ru 4000 --dry-run
    """
    from stores.transfer import copy as transfer
    from stores.transfer import foresee_copy
    from stores.verification import load_manifest

    target, spending = within(target, max_ru) or target, Spending()
    if dry_run:
        with bars() as tell:

            async def foresee(here: "Store", there: "Store") -> "Forecast":
                chosen = await choose(here, release)
                progress = partial(tell, "dry run")
                return await foresee_copy(here, there, chosen.id, live=activate, on_progress=progress)

            found = with_stores(source, target, foresee)
        foretelling.tell(found, target, as_json=as_json)
        return
    with bars(spending.progress) as tell:

        async def act(here: "Store", there: "Store") -> "WriteResult":
            chosen = await choose(here, release)
            spending.watch(there, plan_of(await load_manifest(here, chosen)), quiet=as_json)
            return await transfer(here, there, chosen.id, live=activate, on_progress=partial(tell, "copy"))

        done = with_stores(source, target, act, spending)
    copied, state = done.manifest.release, "live" if activate else "ready"
    tell_one(
        {"release": done.manifest, "live": activate, "rows_written": done.rows, "rows_there": done.skipped}
        | spending.to_json(),
        f"{copied} is {state}: {done.rows:,} rows written, {done.skipped:,} were there",
        as_json=as_json,
    )
    if not as_json and done.rows:
        spending.show(plan_of(done.manifest))


app.command()(inspection.verify)
app.command()(inspection.diff)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
