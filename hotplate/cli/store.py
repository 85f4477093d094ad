"""`hotplate store`: doctor, backup, restore and rebuild.

A survey (`hotplate.stores.rebuild`) finds the complete releases in a store by their data, without the catalogue.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from click.exceptions import Exit

from hotplate.base.exit_codes import FAILED
from hotplate.base.report import format_count
from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import (
    StoreUrl,
    format_time,
    out,
    print_json,
    print_result,
    progress_bars,
    run_on_store,
    shown_store_url,
    table,
)
from hotplate.offline.options import Reason
from hotplate.stores.catalogue import Catalogue, ReleaseId
from hotplate.stores.change_warnings import with_warnings
from hotplate.stores.errors import StoreMisused
from hotplate.stores.options import Argument, Flag
from hotplate.stores.release_log import signed
from hotplate.stores.store import Finding, Level, Store, StoreUse

if TYPE_CHECKING:
    from hotplate.stores.file.backup import BackupResult
    from hotplate.stores.file.store import LmdbStore
    from hotplate.stores.rebuild import Survey
    from hotplate.stores.verification import OnProgress

app = Verbs(
    help="Examine a store, back it up, restore it, rebuild its catalogue.\n\n"
    "Example: hotplate store doctor --store redis://localhost:6379/0",
)

# What a store can be used for, by the uses that findings prevent.
ABILITIES: Mapping[frozenset[StoreUse], str] = {
    frozenset(): "can be served from and published to",
    frozenset({StoreUse.PUBLISHING}): "can be served from, but not published to",
    frozenset({StoreUse.SERVING}): "can be published to, but not served from",
    frozenset(StoreUse): "can be neither served from nor published to",
}


@app.command()
def doctor(store: StoreUrl = None) -> None:
    """Check, without changes, whether a store can be served from and published to.

    Checks versions, rights, clock, memory or disk, eviction, persistence, encryption, read times, the live release, and
    leftovers. Exits 1 if there is an error.

    Example: hotplate store doctor --store redis://localhost:6379/0
    """
    from hotplate.stores.doctor import examine

    findings = run_on_store(store, examine, may_be_new=True)
    _print_findings(findings, store)
    if any(finding.level is Level.ERROR for finding in findings):
        raise Exit(FAILED)


def _print_findings(findings: Sequence[Finding], store: str | None) -> None:
    """Print whether a store can be served from and published to, and each finding on a line.

    A finding is a sentence on a part of the store (`subject`), with a level, such as error or warning.
    """
    counts = Counter(finding.level for finding in findings)
    facts = {
        "store": shown_store_url(store),
        "fit": not counts[Level.ERROR],
        "findings": [finding._asdict() | {"prevents": finding.prevented} for finding in findings],
    }

    lines = [f"{finding.level:<8} {finding.subject:<12} {finding.sentence}" for finding in findings]
    prevented = frozenset(use for finding in findings for use in finding.prevented)
    totals = f"{format_count(counts[Level.ERROR], 'error')}, {format_count(counts[Level.WARNING], 'warning')}"
    answer = f"{shown_store_url(store)} {ABILITIES[prevented]}: {totals}"
    print_result(facts, answer, *lines)


@app.command()
def backup(
    target: Annotated[Path, Argument("A folder that is new, or empty.", "FOLDER")],
    store: StoreUrl = None,
) -> None:
    """Copy all releases of a file:// store, and its catalogue, into a folder, while it serves and is published to.

    The backup is itself a store: `hotplate releases verify --store file:///FOLDER` reads it.

    Example: hotplate store backup /backup/hotplate-monday --store file:///var/lib/hotplate
    """
    from hotplate.stores.file.backup import backup as write_backup

    sentence = f"{shown_store_url(store)} is backed up to {target}"
    _copy_files(
        "backup",
        store,
        copy=lambda opened, report: write_backup(opened, target, report),
        sentence=sentence,
    )


@app.command()
def restore(
    source: Annotated[Path, Argument("A folder written by `hotplate store backup`.", "FOLDER")],
    store: StoreUrl = None,
    over: Annotated[bool, Flag("Restore over an existing store, which may be in use.", env=False)] = False,
    reason: Reason = "",
) -> None:
    """Restore a backup of a file:// store; services switch to its live release at once.

    With --over, releases that are not in the backup leave service, and `hotplate releases prune` erases them.

    Example: hotplate store restore /backup/hotplate-monday --store file:///var/lib/hotplate --over
    """
    from hotplate.stores.file.backup import restore as restore_backup

    sentence = f"{shown_store_url(store)} is restored from {source}"
    with signed(reason):
        _copy_files(
            "restore",
            store,
            copy=lambda opened, report: restore_backup(source, opened, report, over=over),
            sentence=sentence,
        )


@app.command()
def rebuild(
    store: StoreUrl = None,
    live: Annotated[
        str | None, Flag("The release to make live; needed if there are several.", env=False, metavar="RELEASE")
    ] = None,
    force: Annotated[bool, Flag("Make it live although gates refused it, or it is damaged.", env=False)] = False,
    reason: Reason = "",
) -> None:
    """Write a new catalogue from the releases in a store, if the old one is lost or cannot be read.

    Reads every row of each release, and lists them with time, rows, gates and damage. One becomes live and the others
    ready; services follow at once. Without --live, several releases are only listed, and the exit code is 2.

    Example: hotplate store rebuild --store file:///var/lib/hotplate --live 20261120T064200Z-7f3a
    """
    from hotplate.stores import rebuild as store_rebuild

    live_id = None if live is None else ReleaseId(live)
    with progress_bars() as on_progress:
        surveyed = run_on_store(store, partial(store_rebuild.survey, wanted=live_id, on_progress=on_progress))

    catalogue: Catalogue | None = None
    try:
        chosen = live_id or surveyed.only()
        with signed(reason):
            catalogue = run_on_store(store, partial(store_rebuild.rebuild, survey=surveyed, live=chosen, force=force))
    finally:  # the survey is printed in any case
        facts = _survey_json(surveyed, catalogue)
        print_json(with_warnings({"store": shown_store_url(store), **facts}))
        _print_survey(surveyed, catalogue, shown_store_url(store))


def _survey_json(surveyed: "Survey", rebuilt: Catalogue | None) -> dict[str, object]:
    """Return what `rebuild` prints as JSON: the releases that a store has rows of, and what else it has.

    *rebuilt* is the new catalogue, with the state of each release, None if none was written. An incarnation is the
    unique name of one write of a release.
    """
    live = None if rebuilt is None else rebuilt.live
    states = {} if rebuilt is None else {entry.incarnation: entry.state for entry in rebuilt.releases}
    releases = list[dict[str, object]]()
    for release in surveyed.releases:
        facts = {
            "id": release.ref.id,
            "incarnation": release.ref.incarnation,
            "state": states.get(release.ref.incarnation),
            "rows": release.manifest.rows,
            "refused_by": release.refused_by,
            "damage": release.damage,
        }
        releases.append(asdict(release.manifest) | facts)
    return {"live": live, "releases": releases, "not_taken_up": surveyed.others}


def _print_survey(surveyed: "Survey", rebuilt: Catalogue | None, store: str) -> None:
    """Print the releases that a store has rows of, what it does not use, and the live release of the new catalogue.

    *rebuilt* is that catalogue, None if none was written; *store* is the store's URL as shown.
    """
    rows = [
        (
            release.ref.id,
            format_time(release.manifest.created_at),
            f"{release.manifest.rows:,}",
            ", ".join(release.refused_by) or "none",
            release.damage or "sound",
        )
        for release in surveyed.releases
    ]
    out.print(table(("release", "written", "rows", "refused by", "verify"), rows))
    for incarnation, reason in surveyed.others.items():
        out.print(f"not used, so `hotplate releases prune` erases it: {incarnation}, {reason}")
    if rebuilt is not None:
        counts = format_count(len(rebuilt.releases), "release")
        out.print(f"{rebuilt.live} is live in {store}, by a new catalogue of {counts}")


def _copy_files(
    verb: str,
    store: str | None,
    *,
    copy: Callable[["LmdbStore", "OnProgress"], Awaitable["BackupResult"]],
    sentence: str,
) -> None:
    """Back up or restore a file:// store by *copy*, and print *sentence* with the releases and bytes that were copied.

    *verb* names the progress bar. Raises StoreMisused for a store of another kind.
    """
    from hotplate.stores.file.store import LmdbStore

    with progress_bars() as on_progress:
        report = partial(on_progress, verb)

        async def check_and_copy(opened: Store) -> "BackupResult":
            if not isinstance(opened, LmdbStore):
                raise StoreMisused(
                    "only file:// stores are backed up by hotplate; Redis and Cosmos DB have their own backups, and "
                    "`hotplate releases copy` copies a release of any store into a folder"
                )
            return await copy(opened, report)

        result = run_on_store(store, check_and_copy, may_be_new=True)  # `backup` reports a missing store

    live = f"{result.live} is live" if result.live else "nothing is live"
    copied = f"{len(result.releases)} releases, {result.copied_bytes / 1e6:,.1f} MB copied"
    print_result(result, f"{sentence}: {copied}; {live} in it")
