"""`hotplate store`: look after a store as a whole: doctor, backup, restore and rebuild."""

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import (
    FAILED,
    Json,
    StoreUrl,
    counted,
    out,
    print_json,
    print_result,
    progress_bars,
    shown_store,
    table,
    with_store,
)
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.stores.catalogue import Catalogue
    from hotplate.stores.file.backup import BackupResult
    from hotplate.stores.file.store import LmdbStore
    from hotplate.stores.manifest import Manifest
    from hotplate.stores.rebuild import Survey
    from hotplate.stores.store import Store

DAY_S = 86_400

app = Verbs(
    no_args_is_help=True,
    help="Look after a store as a whole: examine it, back it up, put it back, rebuild its catalogue.\n\n"
    "Example: hotplate store doctor --store redis://localhost:6379/0",
)


@app.command()
def doctor(store: StoreUrl = None, as_json: Json = False) -> None:
    """Examine a store: is it fit to be served from and published to? Nothing in it is changed.

    Looked at are versions, rights, clock, memory or disk, eviction, persistence, encryption, how quickly it is read,
    what is live, and what was left over. Each line is ok, a warning or an error, and says what to do.

    Exits 1 if there is an error.

    Example: hotplate store doctor --store redis://localhost:6379/0
    """
    from hotplate.stores.doctor import examine
    from hotplate.stores.store import Level

    found = with_store(store, examine, may_be_new=True)
    counts = Counter(each.level for each in found)
    print_result(
        {
            "store": shown_store(store, as_json=True),
            "fit": not counts[Level.ERROR],
            "findings": [each._asdict() for each in found],
        },
        shown_store(store),
        *(f"{each.level:<8} {each.subject:<12} {each.sentence}" for each in found),
        f"{counted(counts[Level.ERROR], 'error')}, {counted(counts[Level.WARNING], 'warning')}",
        as_json=as_json,
    )
    raise typer.Exit(FAILED if counts[Level.ERROR] else 0)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that is new, or empty.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Copy all releases of a file:// store, and its catalogue, into a folder, while it is served and published to.

    The backup is a store itself: `hotplate releases verify --store file:///FOLDER` reads it. How Redis and Cosmos DB
    are backed up, the documentation of releases says.

    Example: hotplate store backup /backup/hotplate-monday --store file:///var/lib/hotplate
    """
    from hotplate.stores.file.backup import backup as copy_all

    with progress_bars() as on_progress:

        async def act(opened: "Store") -> "BackupResult":
            return await copy_all(_folder_store(opened), target, partial(on_progress, "backup"))

        done = with_store(store, act, may_be_new=True)  # which is said of the folder
    _print_copied(done, f"{shown_store(store)} is backed up to {target}", as_json=as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, as `hotplate store backup` writes it.")],
    store: StoreUrl = None,
    over: Annotated[bool, Flag("Restore over a store that is there, and may be in use.", env=False)] = False,
    as_json: Json = False,
) -> None:
    """Put a backup of a file:// store back; services follow what was live in it at once.

    With --over, releases that the backup lacks leave service, and `hotplate releases prune` erases them.

    Example: hotplate store restore /backup/hotplate-monday --store file:///var/lib/hotplate --over
    """
    from hotplate.stores.file.backup import restore as put_back

    with progress_bars() as on_progress:

        async def act(opened: "Store") -> "BackupResult":
            return await put_back(source, _folder_store(opened), partial(on_progress, "restore"), over=over)

        done = with_store(store, act, may_be_new=True)
    _print_copied(done, f"{shown_store(store)} is restored from {source}", as_json=as_json)


@app.command()
def rebuild(
    store: StoreUrl = None,
    live: Annotated[
        str | None, Flag("The release to make live; needed if there are several.", env=False, metavar="RELEASE")
    ] = None,
    force: Annotated[bool, Flag("Make it live although gates refused it, or it cannot be served.", env=False)] = False,
    as_json: Json = False,
) -> None:
    """Write a new catalogue from the releases that the store holds, if the old one is lost or cannot be read.

    Every row of each release is read, and the releases are listed: when each was written, its rows, what its gates
    said, and whether it is sound. One becomes live and the others ready; services follow at once, and no data move. A
    publish that was under way is to be started again.

    Without --live, if there are several, they are only listed, and the exit code is 2.

    Example: hotplate store rebuild --store file:///var/lib/hotplate --live 20261120T064200Z-7f3a
    """
    from hotplate.stores.catalogue import Catalogue, ReleaseId
    from hotplate.stores.errors import StoreError
    from hotplate.stores.rebuild import rebuild as write_catalogue
    from hotplate.stores.rebuild import survey

    wanted = None if live is None else ReleaseId(live)
    with progress_bars() as on_progress:

        async def act(opened: "Store") -> "tuple[Survey, Catalogue | StoreError]":
            found = await survey(opened, wanted, on_progress)
            try:
                return found, await write_catalogue(opened, found, wanted or found.only(), force=force)
            except StoreError as error:  # what was found is to be printed all the same
                return found, error

        found, outcome = with_store(store, act)
    _print_survey(found, outcome if isinstance(outcome, Catalogue) else None, store, as_json=as_json)
    if isinstance(outcome, StoreError):
        raise outcome


def _print_survey(found: "Survey", rebuilt: "Catalogue | None", url: str | None, *, as_json: bool) -> None:
    now, states = found.now, {}
    if rebuilt is not None:
        states = {entry.incarnation: entry.state for entry in rebuilt.releases}
    if as_json:
        releases = [
            asdict(one.manifest)
            | {"id": one.ref.id, "incarnation": one.ref.incarnation, "state": states.get(one.ref.incarnation)}
            | {"age_s": now - one.manifest.created_at, "rows": one.manifest.rows}
            | {"damage": one.damage, "refusal": one.refusal}
            for one in found.releases
        ]
        live = None if rebuilt is None else rebuilt.live
        print_json(
            {"store": shown_store(url, as_json=True), "live": live, "releases": releases, "not_taken_up": found.others}
        )
        return
    rows = [
        (
            one.ref.id,
            f"{datetime.fromtimestamp(one.manifest.created_at, UTC):%Y-%m-%d %H:%M:%S}Z",
            f"{(now - one.manifest.created_at) / DAY_S:,.1f} days",
            f"{one.manifest.rows:,}",
            _gates(one.manifest),
            "sound" if one.damage is None else "damaged" if one.refusal is None else "cannot be served",
        )
        for one in found.releases
    ]
    out.print(table(("release", "written", "age", "rows", "gates", "verify"), rows))
    for one in found.releases:
        for sentence in dict.fromkeys(filter(None, (one.damage, one.refusal))):
            out.print(f"{one.ref.id}: {sentence}")
    for incarnation, reason in found.others.items():
        out.print(f"not taken up, so `hotplate releases prune` erases it: {incarnation}, {reason}")
    if rebuilt is not None:
        counts = counted(len(rebuilt.releases), "release")
        out.print(f"{rebuilt.live} is live in {shown_store(url)}, by a new catalogue of {counts}")


def _gates(manifest: "Manifest") -> str:
    """Return in a few words what the gates of a release said, as its manifest has it."""
    recorded: dict[str, Any] = manifest.about.get("gates") or {}
    verdicts = recorded.get("verdicts", ())
    failed = [verdict["gate"] for verdict in verdicts if not verdict["passed"]]
    if not failed:
        return f"{len(verdicts)} passed" if verdicts else "none"
    return f"{', '.join(failed)} failed{', forced' if recorded.get('forced') else ''}"


def _folder_store(opened: "Store") -> "LmdbStore":
    """Return the store, if it is a folder; StoreMisused for any other."""
    from hotplate.stores.errors import StoreMisused
    from hotplate.stores.file.store import LmdbStore

    if not isinstance(opened, LmdbStore):
        raise StoreMisused(
            "only file:// stores are backed up by hotplate; Redis and Cosmos DB have backups of their own, and "
            "`hotplate releases copy` copies a release of any store into a folder"
        )
    return opened


def _print_copied(done: "BackupResult", what: str, *, as_json: bool) -> None:
    live = f"{done.live} is live" if done.live else "nothing is live"
    text = f"{what}: {len(done.releases)} releases, {done.copied_bytes / 1e6:,.1f} MB copied; {live} in it"
    print_result(done, text, as_json=as_json)
