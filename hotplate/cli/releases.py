"""`hotplate releases`: list, show, log, activate, rollback, canary, prune, copy, verify, scrub and repair."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Annotated

import msgspec

from hotplate.base.report import format_count
from hotplate.base.timing import DAY_S
from hotplate.cli.costs import MaxRu, RequestUnitMeter, limit_ru
from hotplate.cli.flags import Verbs
from hotplate.cli.manifests import manifest_facts, print_gates, print_quality
from hotplate.cli.terminal import (
    StoreUrl,
    format_time,
    out,
    print_json,
    print_result,
    progress_bars,
    run_on_store,
    shown_store_url,
    store_url_or_default,
    table,
)
from hotplate.offline.options import ChosenArm, EndCanary, Keep, Reason
from hotplate.stores import transitions
from hotplate.stores.catalogue import Catalogue, Release, ReleaseId
from hotplate.stores.change_warnings import failure_as_warning, with_warnings
from hotplate.stores.errors import ReleaseWithdrawn
from hotplate.stores.manifest import Manifest
from hotplate.stores.options import Argument, Flag
from hotplate.stores.release_log import ReleaseChange, signed
from hotplate.stores.store import Store

if TYPE_CHECKING:
    from hotplate.stores.publication import WrittenRelease
    from hotplate.stores.verification import OnProgress

app = Verbs(
    help="List, log, activate, roll back, try as a canary, prune, copy, verify and repair releases.\n\n"
    "Example: hotplate releases list --store file:///var/lib/hotplate",
)

# Ten years; dates of any grace can be printed.
MAX_GRACE_S = 3_650 * DAY_S

ReleaseArgument = Annotated[str, Argument("An id, as `hotplate releases list` shows it.", "RELEASE")]
IfCanary = Annotated[str | None, Argument("The expected canary; if another one is, nothing is done.", "RELEASE")]
Force = Annotated[bool, Flag("Do it even if gates refused the release, or it cannot be served.", env=False)]
ReleaseOrLive = Annotated[
    str | None, Argument("An id, as `hotplate releases list` shows it; by default the live release.", "RELEASE")
]


@app.command("list")
def list_all(store: StoreUrl = None) -> None:
    """List the releases of a store, in the order of their last commit or activation.

    Example: hotplate releases list --store file:///var/lib/hotplate
    """
    catalogue = run_on_store(store, lambda opened: opened.catalogue())
    facts = {name: getattr(catalogue, name) for name in ("live", "canary", "experiment", "generation")}
    print_json(facts | {"releases": catalogue.distinct})
    _print_releases(catalogue, store)


def _print_releases(catalogue: Catalogue, store: str | None) -> None:
    """Print which release of a store is live, and a table of all; the catalogue is the store's record of releases.

    `distinct` has its entries without those that a current entry of the same id has replaced.
    """
    if not catalogue.distinct:
        out.print(f"no releases in {shown_store_url(store)}; `hotplate store rebuild` finds lost ones")
        return

    live = f"release {catalogue.live} is live" if catalogue.live else "no release is live"
    out.print(f"{live} in {shown_store_url(store)}, of {format_count(len(catalogue.distinct), 'release')}")

    rows = list[tuple[object, ...]]()
    for entry in catalogue.distinct:
        state = _state_in_words(catalogue, entry)
        rows.append((entry.id, state, format_time(entry.created_at), format_time(entry.superseded_at)))
    out.print(table(("release", "state", "begun", "left service"), rows))


@app.command()
def show(release: ReleaseArgument, store: StoreUrl = None) -> None:
    """Show a release: state, model, rows, gates, origin and quality.

    --json prints the whole manifest.

    Example: hotplate releases show 20261120T064200Z-7f3a
    """
    from hotplate.releases import find_manifest

    async def read_manifest_and_catalogue(opened: Store) -> tuple[Manifest, Catalogue]:
        return await find_manifest(opened, release), await opened.catalogue()

    manifest, catalogue = run_on_store(store, read_manifest_and_catalogue)
    entry = catalogue.find(ReleaseId(release))
    canary = catalogue.canary
    percent = canary.percent if canary is not None and canary.release == release else None
    state = {"state": entry.state, "refused_by": entry.refused_by, "canary_percent": percent}
    print_json(asdict(manifest) | state)

    out.print(table(("", ""), manifest_facts(manifest, _state_in_words(catalogue, entry))))
    print_quality(manifest)
    print_gates(manifest.origin.gates)


@app.command("log")
def show_log(store: StoreUrl = None) -> None:
    """Show the last 100 changes of what is live or the canary, the newest first: when, by whom, and why (--reason).

    Example: hotplate releases log --store file:///var/lib/hotplate
    """
    from hotplate.releases import release_log

    changes = release_log(store_url_or_default(store))[::-1]
    print_json({"changes": [msgspec.structs.asdict(change) for change in changes]})
    out.print(f"{format_count(len(changes), 'change')} of served releases in {shown_store_url(store)}")
    if changes:
        rows = [(format_time(change.at), _served_in_words(change), change.by, change.reason) for change in changes]
        out.print(table(("time", "live", "by", "reason"), rows))


def _served_in_words(change: ReleaseChange) -> str:
    """Return the live release after a change, and its canary."""
    live = change.live or "none"
    return live if change.canary is None else f"{live}, canary {change.canary} of {change.percent:g} %"


@app.command()
def activate(
    release: ReleaseArgument,
    store: StoreUrl = None,
    arm: ChosenArm = "A",
    end_canary: EndCanary = False,
    force: Force = False,
    reason: Reason = "",
) -> None:
    """Make a committed release live, or that of arm B.

    Its manifest, popular lists and a sample of its rows are read first. While another release is the canary, or if
    gates refused it at publishing, nothing is changed, and the exit code is 3.

    Example: hotplate releases activate 20261120T064200Z-7f3a --reason "sale is over"
    """
    from hotplate.releases import activate as activate_release

    url = store_url_or_default(store)
    is_changed = activate_release(url, release, arm=arm, end_canary=end_canary, force=force, reason=reason)

    role = "live" if arm == "A" else "arm B"
    state = f"is {role}" if is_changed else f"was {role} already, and nothing was changed,"
    key = "live" if arm == "A" else "arm_b"
    _print_change(store, {key: release}, f"{release} {state}")


@app.command()
def rollback(store: StoreUrl = None, force: Force = False, reason: Reason = "") -> None:
    """Make the release that was live before live again; no data moves, and a canary ends.

    An experiment goes on, unless that release is its arm B, which all users then see. Its manifest, popular lists and a
    sample of its rows are read first.

    Example: hotplate releases rollback
    """
    from hotplate.releases import rollback as roll_back

    release = roll_back(store_url_or_default(store), force=force, reason=reason)
    _print_change(store, {"live": release}, f"{release} is live again")


@app.command()
def canary(
    release: ReleaseArgument,
    store: StoreUrl = None,
    percent: Annotated[
        float, Flag("The percentage of the users who see it; the same command changes it.", metavar="PERCENT")
    ] = 5.0,
    days: Annotated[
        float | None,
        Flag("Run an experiment of this many days.", at_least=0.01, at_most=366, env=False, metavar="DAYS"),
    ] = None,
    force: Force = False,
    reason: Reason = "",
) -> None:
    """Show a release to a share of the users, instead of the live one.

    Users are chosen by the hash of their ids, so each sees the same release in every process. End it with `hotplate
    releases promote` or `abort`.

    With --days it is arm B of an experiment: `publish` and `publish --arm B` renew either arm, no user changes the arm,
    and `hotplate events report --goal` compares the arms when the days are over.

    Example: hotplate releases canary 20261121T064200Z-09c1 --percent 5

    An experiment: hotplate releases canary 20261121T064200Z-09c1 --percent 50 --days 14
    """
    from hotplate.stores.lifecycle import Override, start_canary

    release_id = ReleaseId(release)
    override = Override.of(force=force)
    with signed(reason):
        run_on_store(store, lambda opened: start_canary(opened, release_id, percent, days, override=override))
    fields = {"canary": {"release": release, "percent": percent}}
    _print_change(store, fields, f"{percent:g} % of the users see {release}")


@app.command()
def promote(
    release: IfCanary = None,
    store: StoreUrl = None,
    force: Force = False,
    reason: Reason = "",
) -> None:
    """Make the canary live.

    Example: hotplate releases promote 20261121T064200Z-09c1
    """
    from hotplate.stores.lifecycle import Override
    from hotplate.stores.lifecycle import promote as promote_canary

    expected = None if release is None else ReleaseId(release)
    override = Override.of(force=force)
    with signed(reason):
        release = run_on_store(store, lambda opened: promote_canary(opened, expected, override=override))
    _print_change(store, {"live": release}, f"{release} is live")


@app.command()
def abort(release: IfCanary = None, store: StoreUrl = None, reason: Reason = "") -> None:
    """End the canary, so all users see the live release; its release stays ready.

    Example: hotplate releases abort 20261121T064200Z-09c1
    """
    from hotplate.stores.lifecycle import abort as abort_canary

    expected = None if release is None else ReleaseId(release)
    with signed(reason):
        release = run_on_store(store, lambda opened: abort_canary(opened, expected))
    fields = {"canary": None, "aborted": release}
    _print_change(store, fields, f"{release} is not the canary any more")


@app.command()
def prune(
    store: StoreUrl = None,
    keep: Keep = 1,
    grace: Annotated[
        float,
        Flag("Keep a release for this time after it left service.", at_least=0, at_most=MAX_GRACE_S, is_time=True),
    ] = 600,
    keep_ready: Annotated[
        float | None,
        Flag("Also erase releases that were never live and were begun this many days ago.", at_least=0, metavar="DAYS"),
    ] = None,
) -> None:
    """Erase releases past their grace, and drafts that had no writer for six hours (with --grace 0: now).

    Example: hotplate releases prune --keep 2 --keep-ready 7
    """
    from hotplate.releases import prune as prune_releases

    keep_ready_s = None if keep_ready is None else keep_ready * DAY_S
    with progress_bars() as on_progress:
        erased = prune_releases(
            store_url_or_default(store),
            keep=keep,
            grace_s=grace,
            keep_ready_s=keep_ready_s,
            on_progress=partial(on_progress, "prune"),
        )
    notes = list[str]()
    if not out.quiet:
        left_at = list[float]()
        with failure_as_warning("it is not known which releases are kept for their grace"):
            left_at = run_on_store(store, partial(_read_in_grace, keep=keep, keep_ready_s=keep_ready_s))
        if left_at:
            kept = f"{format_count(len(left_at), 'release')} that left service less than {grace:g} s ago (--grace)"
            notes = [f"not erased before {format_time(max(left_at) + grace)}: {kept}"]
    _print_change(store, {"erased": erased}, f"erased {', '.join(erased) or 'nothing'}", *notes)


async def _read_in_grace(store: Store, *, keep: int, keep_ready_s: float | None) -> list[float]:
    """Return when releases left service that `prune` will erase once their grace is over."""
    catalogue = await store.catalogue()
    pruned = transitions.prune(catalogue, keep, grace_s=0, keep_ready_s=keep_ready_s)
    return [
        entry.superseded_at
        for entry, later in zip(catalogue.releases, pruned.releases, strict=True)
        if entry.superseded_at is not None and entry.state is not later.state
    ]


@app.command()
def copy(
    source: Annotated[str, Flag("The store to copy from.", name="from", metavar="URL")],
    target: Annotated[str, Flag("The store to copy to.", name="to", metavar="URL")],
    release: ReleaseOrLive = None,
    activate: Annotated[bool, Flag("Make the release live in the target.")] = True,
    max_ru: MaxRu = None,
    reason: Reason = "",
) -> None:
    """Copy a release, by default the live one, to another store under the same id.

    The copy is checked against the manifest and made live in the target. A release that the target has is verified,
    and repaired if rows are missing or damaged. To continue an interrupted copy, give the same command again.

    Example: hotplate releases copy --from file:///var/lib/hotplate --to redis://localhost:6379/0
    """
    from hotplate.releases import copy as copy_release

    target = limit_ru(target, max_ru) or target
    meter = RequestUnitMeter()
    with progress_bars(meter.progress) as on_progress:
        result = copy_release(
            store_url_or_default(source),
            store_url_or_default(target),
            release,
            live=activate,
            reason=reason,
            on_progress=partial(on_progress, "copy"),
            observer=meter,
        )
    _print_copied(result, target, meter, is_live=activate and result.held_back is None)
    if result.held_back is not None:
        raise result.held_back


def _print_copied(result: "WrittenRelease", target: str, meter: RequestUnitMeter, *, is_live: bool) -> None:
    """Print the rows that were copied to the store *target*, the release's state, and the request units spent.

    Of an interrupted copy that was continued, `skipped` rows had been written before.
    """
    facts = {
        "release": result.manifest,
        "live": is_live,
        "rows_written": result.rows,
        "rows_there": result.skipped,
        "repaired": result.repaired,
    }
    state = "live" if is_live else "ready"
    if isinstance(result.held_back, ReleaseWithdrawn):
        state = "withdrawn"
    if result.repaired:
        state += " and repaired"
    rows = f"{result.rows:,} rows written, {result.skipped:,} had been written before"
    _print_change(target, facts | meter.to_json(), f"{rows}; {result.manifest.release} is {state}")
    if result.rows:
        meter.print_totals(result.manifest.rows)


@app.command()
def verify(release: ReleaseOrLive = None, store: StoreUrl = None) -> None:
    """Read every row of a release and check counts, bytes and digest against its manifest.

    If rows are missing or damaged, the exit code is 1; `hotplate releases repair` restores them.

    Example: hotplate releases verify --store redis://localhost:6379/0
    """
    _verify("verify", store, release=release, rows_per_s=inf)


@app.command()
def scrub(
    release: ReleaseOrLive = None,
    store: StoreUrl = None,
    rate: Annotated[float, Flag("The rows to read in a second.", at_least=1, metavar="ROWS/S")] = 1000,
) -> None:
    """Read every row of a release as `verify` does, at a limited rate, beside a service.

    Example: hotplate releases scrub --store redis://localhost:6379/0 --rate 5000
    """
    _verify("scrub", store, release=release, rows_per_s=rate)


def _verify(verb: str, store: str | None, *, release: str | None, rows_per_s: float) -> None:
    """Check all rows of a release, and print that it is complete; *verb* names the progress bar."""
    from hotplate.releases import verify as verify_release

    with progress_bars() as on_progress:
        report = partial(on_progress, verb)
        manifest = verify_release(store_url_or_default(store), release, rows_per_s=rows_per_s, on_progress=report)
    sentence = f"{manifest.release} is complete: {manifest.rows:,} rows, {manifest.bytes:,} bytes"
    print_result({"release": manifest}, sentence)


@app.command()
def repair(
    source: Annotated[str, Flag("The store to take the rows from.", name="from", metavar="URL")],
    release: ReleaseOrLive = None,
    store: StoreUrl = None,
) -> None:
    """Rewrite a damaged release, by default the live one, from another store that has it.

    It stays served, and services switch to the new rows once they are verified.

    Example: hotplate releases repair --from redis://localhost:6379/0 --store file:///var/lib/hotplate
    """
    from hotplate.stores.connect import run_between

    with progress_bars() as on_progress:
        find_and_repair = partial(_repair, release=release, on_progress=partial(on_progress, "repair"))
        result = run_between(store_url_or_default(source), store_url_or_default(store), find_and_repair)
    fields = {"release": result.manifest, "rows_written": result.rows}
    sentence = f"{result.rows:,} rows of {result.manifest.release} were written again"
    _print_change(store, fields, sentence)


async def _repair(source: Store, damaged: Store, *, release: str | None, on_progress: "OnProgress") -> "WrittenRelease":
    """Rewrite a release, by default the live one, of the store *damaged*."""
    from hotplate.releases import find_release
    from hotplate.stores.transfer import repair as repair_release

    entry = await find_release(damaged, release)
    return await repair_release(damaged, source, entry.id, on_progress=on_progress)


def _print_change(store: str | None, fields: Mapping[str, object], sentence: str, *notes: str) -> None:
    """Print the fields as JSON, with warnings, or the sentence and notes; both with the store that was changed."""
    facts = {"store": shown_store_url(store), **fields}
    print_result(with_warnings(facts), f"{sentence} in {shown_store_url(store)}", *notes)


def _state_in_words(catalogue: Catalogue, entry: Release) -> str:
    """Return a release's state in words: gates that refused it, its arm of an experiment, its share as a canary."""
    state = str(entry.state)
    if entry.refused_by and entry.state in ("ready", "withdrawn"):
        state = f"refused by {', '.join(entry.refused_by)}"
    experiment = catalogue.running
    if experiment is not None and catalogue.live_entry == entry:
        state = f"{state}, arm A"
    if catalogue.canary is not None and catalogue.canary_entry == entry:
        share = f"{catalogue.canary.percent:g} %"
        if experiment is None:
            return f"{state}, canary of {share}"
        return f"{state}, arm B of {share} until {format_time(experiment.ends_at)}"
    return state
