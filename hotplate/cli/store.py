"""`hotplate store`: look after a store as a whole: doctor, backup and restore."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import (
    FAILED,
    Json,
    StoreUrl,
    chosen_store,
    option,
    out,
    print_json,
    progress_bars,
    with_store,
)

if TYPE_CHECKING:
    from stores.file.backup import BackupResult
    from stores.file.store import LmdbStore
    from stores.store import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Look after a store as a whole: examine it, back it up, put it back.\n\nExample: hotplate store doctor --store redis://localhost:6379/0",
)


@app.command()
def doctor(store: StoreUrl = None, as_json: Json = False) -> None:
    """Examine a store: is it fit to be served from and published to? Nothing in it is changed.

    Looked at are versions, rights, clock, memory or disk, eviction, persistence, encryption, how quickly it is read,
    what is live, and what was left over. Each line is ok, a warning or an error, and says what to do.

    Exits 1 where there is an error.

    Example: hotplate store doctor --store redis://localhost:6379/0
    """
    from stores.doctor import examine
    from stores.store import Level
    from stores.urls import redacted

    found = with_store(store, examine)
    where, counts = redacted(chosen_store(store)), Counter(each.level for each in found)
    if as_json:
        fit = not counts[Level.ERROR]
        print_json({"store": where, "fit": fit, "findings": [each._asdict() for each in found]})
    else:
        out.print(where)
        for each in found:
            out.print(f"{each.level:<8} {each.subject:<12} {each.sentence}")
        out.print(f"{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings")
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
    from stores.file.backup import backup as copy_all

    with progress_bars() as on_progress:

        async def act(opened: "Store") -> "BackupResult":
            return await copy_all(_folder_store(opened), target, partial(on_progress, "backup"))

        done = with_store(store, act)
    _print_copied(done, f"backed up to {target}", as_json=as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, as `hotplate store backup` writes it.")],
    store: StoreUrl = None,
    over: Annotated[
        bool, option("--over", "Restore over a store that is there, and that may be served meanwhile.", env=False)
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a backup of a file:// store back; services follow what was live in it at once.

    With --over, releases that the backup lacks leave service, and `hotplate releases prune` erases them.

    Example: hotplate store restore /backup/hotplate-monday --store file:///var/lib/hotplate --over
    """
    from stores.file.backup import restore as put_back

    with progress_bars() as on_progress:

        async def act(opened: "Store") -> "BackupResult":
            return await put_back(source, _folder_store(opened), partial(on_progress, "restore"), over=over)

        done = with_store(store, act)
    _print_copied(done, f"restored from {source}", as_json=as_json)


def _folder_store(opened: "Store") -> "LmdbStore":
    """Return the store, where it is a folder; StoreMisused for any other."""
    from stores.errors import StoreMisused
    from stores.file.store import LmdbStore

    if not isinstance(opened, LmdbStore):
        raise StoreMisused(
            "only file:// stores are backed up by hotplate; Redis and Cosmos DB have backups of their own, and "
            "`hotplate releases copy` copies a release of any store into a folder"
        )
    return opened


def _print_copied(done: "BackupResult", what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    live = f"{done.live} is live" if done.live else "nothing is live"
    out.print(f"{what}: {len(done.releases)} releases, {done.copied_bytes / 1e6:,.1f} MB copied; {live} in it")
