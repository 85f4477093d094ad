"""`hotplate releases`: list, show, activate, rollback, canary, prune, copy, verify, scrub and repair."""

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotplate.cli.costs import MaxRu, RequestUnitMeter, limit_ru
from hotplate.cli.flags import Verbs
from hotplate.cli.manifests import print_gates, rules_of
from hotplate.cli.terminal import (
    Json,
    StoreUrl,
    chosen_store,
    counted,
    out,
    print_json,
    print_result,
    progress_bars,
    shown_store,
    table,
    with_store,
)
from hotplate.offline.options import ChosenArm, EndCanary, Keep
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.stores.catalogue import Catalogue, Release
    from hotplate.stores.manifest import Manifest
    from hotplate.stores.publication import WriteResult
    from hotplate.stores.store import Store

app = Verbs(
    no_args_is_help=True,
    help="List, activate, roll back, try as a canary, prune, copy, verify and repair releases.\n\n"
    "Example: hotplate releases list --store file:///var/lib/hotplate",
)

DAY_S = 86_400

ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="An id, as `hotplate releases list` shows it.")]
IfCanary = Annotated[
    str | None,
    typer.Argument(
        metavar="RELEASE", help="The expected canary; if another one is, nothing is done.", show_default=False
    ),
]
Force = Annotated[bool, Flag("Do it even if gates refused the release, or it cannot be served.", env=False)]
ReleaseOrLive = Annotated[
    str | None,
    typer.Argument(
        metavar="RELEASE",
        help="An id, as `hotplate releases list` shows it; by default the live release.",
        show_default=False,
    ),
]


@app.command("list")
def list_all(store: StoreUrl = None, as_json: Json = False) -> None:
    """List the releases of a store, in the order of their last commit or activation.

    Example: hotplate releases list --store file:///var/lib/hotplate
    """
    found = with_store(store, lambda opened: opened.catalogue())
    if as_json:
        facts = {name: getattr(found, name) for name in ("live", "canary", "experiment", "generation")}
        print_json(facts | {"releases": found.distinct})
        return
    rows = [
        (entry.id, _state(found, entry), _time(entry.created_at), _time(entry.superseded_at))
        for entry in found.distinct
    ]
    if rows:
        live = f"release {found.live} is live" if found.live else "no release is live"
        out.print(f"{live} in {shown_store(store)}, of {counted(len(rows), 'release')}")
        out.print(table(("release", "state", "begun", "left service"), rows))
    else:
        out.print(f"no releases in {shown_store(store)}; `hotplate store rebuild` finds lost ones")


@app.command()
def show(release: ReleaseArgument, store: StoreUrl = None, as_json: Json = False) -> None:
    """Show a release: state, model, rows, gates, origin and quality.

    --json prints the whole manifest.

    Example: hotplate releases show 20261120T064200Z-7f3a
    """
    from hotplate.stores.catalogue import ReleaseId

    async def read(opened: "Store") -> "tuple[Manifest, Catalogue]":
        return await find_manifest(opened, release), await opened.catalogue()

    manifest, found = with_store(store, read)
    entry = found.find(ReleaseId(release))
    canary = found.canary
    if as_json:
        percent = canary.percent if canary is not None and canary.release == release else None
        marks = {name: getattr(entry, name) for name in ("state", "refused_by")}
        print_json(asdict(manifest) | marks | {"canary_percent": percent})
        return
    about = dict(manifest.about)
    params = ", ".join(f"{name} {value}" for name, value in (about.get("params") or {}).items())
    facts = [
        ("release", manifest.release),
        ("state", _state(found, entry)),
        ("written", _time(manifest.created_at)),
        ("engine", ": ".join(filter(None, (about.pop("engine", ""), params)))),
        ("rows", ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items())),
        ("bytes", f"{manifest.bytes:,}, {manifest.encoding}"),
        ("digest", manifest.digest),
        *((name.replace("_", " "), value) for name, value in about.items() if isinstance(value, str | int | float)),
        *((f"rule: {name}", listed) for name, listed in rules_of(manifest)),
    ]
    out.print(table(("", ""), facts))
    metrics = about.get("metrics") or {}
    if quality := [(name, f"{it:.4f}") for name, it in metrics.get("model", {}).items() if isinstance(it, float)]:
        out.print(table((f"quality at {metrics.get('k')}", ""), quality))
    print_gates(manifest)


@app.command()
def activate(
    release: ReleaseArgument,
    store: StoreUrl = None,
    arm: ChosenArm = "A",
    end_canary: EndCanary = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a committed release live, or that of arm B.

    Its manifest, popular lists and a sample of its rows are read first. While another release is the canary, or if
    gates refused it at publishing, nothing is changed, and the exit code is 3.

    Example: hotplate releases activate 20261120T064200Z-7f3a
    """
    from hotplate.stores.catalogue import ReleaseId
    from hotplate.stores.lifecycle import activate as act

    step = partial(act, release=ReleaseId(release), arm=arm, end_canary=end_canary, force=force)
    changed = with_store(store, step)
    role = "live" if arm == "A" else "arm B"
    state = f"is {role}" if changed else f"was {role} already, and nothing was changed,"
    _print_done(store, {role.replace(" ", "_").lower(): release}, f"{release} {state}", as_json=as_json)


@app.command()
def rollback(store: StoreUrl = None, force: Force = False, as_json: Json = False) -> None:
    """Make the release that was live before live again; no data moves, and a canary ends, but not an experiment.

    Its manifest, popular lists and a sample of its rows are read first.

    Example: hotplate releases rollback
    """
    from hotplate.releases import rollback as act

    release = act(chosen_store(store), force=force)
    _print_done(store, {"live": release}, f"{release} is live again", as_json=as_json)


@app.command()
def canary(
    release: ReleaseArgument,
    store: StoreUrl = None,
    percent: Annotated[float, Flag("The share of the users who see it; may be changed later.")] = 5.0,
    days: Annotated[float | None, Flag("Of an experiment.", at_least=0.01, at_most=366, env=False)] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show a release to a share of the users, instead of the live one.

    Users are chosen by the hash of their ids, so each sees the same release in every process. End it with `hotplate
    releases promote` or `abort`.

    With --days it is arm B of an experiment: `publish` and `publish --arm B` renew either arm, no user changes the arm,
    and `hotplate events report --goal` compares the arms when the days are over.

    Example: hotplate releases canary 20261121T064200Z-09c1 --percent 5

    An experiment: hotplate releases canary 20261121T064200Z-09c1 --percent 50 --days 14
    """
    from hotplate.stores.catalogue import ReleaseId
    from hotplate.stores.lifecycle import start_canary as act

    chosen = ReleaseId(release)
    with_store(store, lambda opened: act(opened, chosen, percent, days, force=force))
    fields = {"canary": {"release": release, "percent": percent}}
    _print_done(store, fields, f"{percent:g} % of the users see {release}", as_json=as_json)


@app.command()
def promote(release: IfCanary = None, store: StoreUrl = None, force: Force = False, as_json: Json = False) -> None:
    """Make the canary live.

    Example: hotplate releases promote 20261121T064200Z-09c1
    """
    from hotplate.stores.catalogue import ReleaseId
    from hotplate.stores.lifecycle import promote as act

    expected = None if release is None else ReleaseId(release)
    release = with_store(store, lambda opened: act(opened, expected, force=force))
    _print_done(store, {"live": release}, f"{release} is live", as_json=as_json)


@app.command()
def abort(release: IfCanary = None, store: StoreUrl = None, as_json: Json = False) -> None:
    """End the canary, so all users see the live release; its release stays ready.

    Example: hotplate releases abort 20261121T064200Z-09c1
    """
    from hotplate.stores.catalogue import ReleaseId
    from hotplate.stores.lifecycle import abort as act

    expected = None if release is None else ReleaseId(release)
    release = with_store(store, lambda opened: act(opened, expected))
    fields = {"canary": None, "aborted": release}
    _print_done(store, fields, f"{release} is not the canary any more", as_json=as_json)


@app.command()
def prune(
    store: StoreUrl = None,
    keep: Keep = 1,
    grace: Annotated[float, Flag("Seconds to keep a release after it left service.", at_least=0)] = 600,
    keep_ready: Annotated[
        float | None,
        Flag("Also erase releases that were never live and were begun this many days ago.", at_least=0),
    ] = None,
    as_json: Json = False,
) -> None:
    """Erase releases past their grace, and drafts without a writer.

    Example: hotplate releases prune --keep 2 --keep-ready 7
    """
    from hotplate.releases import prune as act

    keep_ready_s = None if keep_ready is None else keep_ready * DAY_S
    with progress_bars() as on_progress:
        report = partial(on_progress, "prune")
        dropped = act(chosen_store(store), keep=keep, grace_s=grace, keep_ready_s=keep_ready_s, on_progress=report)
    _print_done(store, {"erased": dropped}, f"erased {', '.join(dropped) or 'nothing'}", as_json=as_json)


@app.command()
def copy(
    source: Annotated[str, Flag("The store to copy from.", name="from", metavar="URL")],
    target: Annotated[str, Flag("The store to copy to.", name="to", metavar="URL")],
    release: ReleaseOrLive = None,
    activate: Annotated[bool, Flag("Make the release live in the target.")] = True,
    max_ru: MaxRu = None,
    as_json: Json = False,
) -> None:
    """Copy a release, by default the live one, to another store under the same id.

    The copy is checked against the manifest and made live in the target. A release that the target has is verified,
    and repaired if rows are missing or damaged. To continue an interrupted copy, give the same command again.

    Example: hotplate releases copy --from file:///var/lib/hotplate --to redis://localhost:6379/0
    """
    from hotplate.releases import find_release
    from hotplate.stores.connect import run_between
    from hotplate.stores.transfer import copy as copy_release

    target = limit_ru(target, max_ru) or target
    meter = RequestUnitMeter()

    async def act(opened: "Store", other: "Store") -> "WriteResult":
        chosen = await find_release(opened, release)
        return await copy_release(opened, other, chosen.id, live=activate, on_progress=report)

    with progress_bars(meter.progress) as on_progress:
        report = partial(on_progress, "copy")
        done = run_between(chosen_store(source), chosen_store(target), act, meter)
    live = activate and done.held_back is None
    counts = {"rows_written": done.rows, "rows_there": done.skipped, "repaired": done.repaired}
    state = f"{'live' if live else 'ready'}{' and repaired' if done.repaired else ''}"
    rows = f"{done.rows:,} rows written, {done.skipped:,} had been written before"
    facts = {"release": done.manifest, "live": live} | counts | meter.to_json()
    _print_done(target, facts, f"{rows}; {done.manifest.release} is {state}", as_json=as_json)
    if not as_json and done.rows:
        meter.print_totals(done.manifest.rows)
    if done.held_back is not None:
        raise done.held_back


@app.command()
def verify(release: ReleaseOrLive = None, store: StoreUrl = None, as_json: Json = False) -> None:
    """Read every row of a release and check counts, bytes and digest against its manifest.

    If rows are missing or damaged, the exit code is 1; `hotplate releases repair` restores them.

    Example: hotplate releases verify --store redis://localhost:6379/0
    """
    _verify("verify", release, store, inf, as_json=as_json)


@app.command()
def scrub(
    release: ReleaseOrLive = None,
    store: StoreUrl = None,
    rate: Annotated[float, Flag("Rows to read in a second.", at_least=1)] = 1000,
    as_json: Json = False,
) -> None:
    """Read every row of a release as `verify` does, at a limited rate, beside a service.

    Example: hotplate releases scrub --store redis://localhost:6379/0 --rate 5000
    """
    _verify("scrub", release, store, rate, as_json=as_json)


def _verify(verb: str, release: str | None, store: str | None, rate: float, *, as_json: bool) -> None:
    from hotplate.releases import verify as check

    with progress_bars() as on_progress:
        report = partial(on_progress, verb)
        manifest = check(chosen_store(store), release, rows_per_s=rate, on_progress=report)
    sentence = f"{manifest.release} is complete: {manifest.rows:,} rows, {manifest.bytes:,} bytes"
    print_result({"release": manifest}, sentence, as_json=as_json)


@app.command()
def repair(
    source: Annotated[str, Flag("The store to take the rows from.", name="from", metavar="URL")],
    release: ReleaseOrLive = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Rewrite a damaged release, by default the live one, from another store that has it.

    It stays served, and services switch to the new rows once they are verified.

    Example: hotplate releases repair --from redis://localhost:6379/0 --store file:///var/lib/hotplate
    """
    from hotplate.releases import find_release
    from hotplate.stores.connect import run_between
    from hotplate.stores.transfer import repair as rewrite

    with progress_bars() as on_progress:

        async def act(opened: "Store", damaged: "Store") -> "WriteResult":
            chosen = await find_release(damaged, release)
            return await rewrite(damaged, opened, chosen.id, on_progress=partial(on_progress, "repair"))

        done = run_between(chosen_store(source), chosen_store(store), act)
    fields = {"release": done.manifest, "rows_written": done.rows}
    sentence = f"{done.rows:,} rows of {done.manifest.release} were written again"
    _print_done(store, fields, sentence, as_json=as_json)


def _print_done(store: str | None, fields: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    where = {"store": shown_store(store, as_json=True)}
    print_result(where | fields, f"{sentence} in {shown_store(store)}", as_json=as_json)


async def find_manifest(store: "Store", release: str | None) -> "Manifest":
    """Return the manifest of *release*, by default of the live one."""
    from hotplate.releases import find_release
    from hotplate.stores.verification import load_manifest

    return await load_manifest(store, await find_release(store, release))


def _state(found: "Catalogue", entry: "Release") -> str:
    is_refused = entry.refused_by and entry.state in ("ready", "withdrawn")
    state = f"refused by {', '.join(entry.refused_by)}" if is_refused else entry.state
    if (running := found.running) is not None and found.live_entry == entry:
        state = f"{state}, arm A"
    if found.canary is not None and found.canary_entry == entry:
        role, until = ("canary", "") if running is None else ("arm B", f" until {_time(running.ends_at)}")
        state = f"{state}, {role} of {found.canary.percent:g} %{until}"
    return state


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
