"""The verbs of the service: `hotplate serve`, `lookup`, `demo`, `keys` and `events`."""

import os
import time
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import (
    Json,
    StoreUrl,
    chosen_store,
    counted,
    err,
    out,
    print_json,
    print_result,
    progress_bars,
    table,
    with_store,
)
from hotplate.serve.settings import LOGS, ServiceSettings, configure_logging
from hotplate.stores.options import Argument, Flag

if TYPE_CHECKING:
    from hotplate.recommendations import Recommendations
    from hotplate.serve.events import EventReport, ListedItems
    from hotplate.serve.experiments import ArmEvents
    from hotplate.stores.store import Store

keys = Verbs(
    no_args_is_help=True,
    help="Create, list and revoke keys, and limit the rate of each client.\n\n"
    "Example: hotplate keys create web --scope read --keys keys.json",
)
events = Verbs(
    no_args_is_help=True,
    help="Ship the events that a service collected, and report on them.\n\n"
    "Example: hotplate events report /var/lib/hotplate/events",
)
ClientName = Annotated[str, Argument("The client's name: letters, digits, dot, dash, underline.", "NAME")]
KeysFile = Annotated[Path, Flag("The file of keys that `hotplate serve` reads.", name="keys", metavar="FILE")]


def serve(
    settings: ServiceSettings,
    telemetry: Annotated[
        Literal["otlp", "azure-monitor"] | None, Flag("Traces and metrics, as OTEL_… variables say.", LOGS)
    ] = None,
) -> None:
    """Serve the live release of a store over HTTP, and follow it from release to release.

    Example: hotplate serve --store redis://cache:6379/0 --store file:///var/lib/hotplate --workers 2

    Withdraw bad releases: hotplate serve --store redis://cache:6379/0 --probation 5m

    Live stock: hotplate serve --overrides stock.csv --events /var/lib/events --hide-consumed buy=24

    On several hosts: hotplate serve --events /var/lib/events --hide-consumed buy=24 --share-consumed redis://cache:6379/0
    """
    from hotplate.serve.errors import ServiceMisused
    from hotplate.serve.processes.supervisor import Addresses
    from hotplate.serve.processes.supervisor import serve as run
    from hotplate.serve.settings import read_telemetry
    from hotplate.stores.connect import check_single, lacks_folder, never_published
    from hotplate.stores.urls import redacted

    urls = tuple(map(chosen_store, settings.stores)) if settings.stores else (chosen_store(None),)
    if settings.keys is None and os.environ.get("HOTPLATE_KEYS") == "":
        raise ServiceMisused("HOTPLATE_KEYS is empty; name the file of keys, or unset it to serve without keys")
    configure_logging()
    chosen = replace(settings, stores=urls, telemetry=read_telemetry(telemetry))
    named = ", ".join(map(redacted, urls))
    for url in urls:
        check_single(url)
        if lacks_folder(url):
            err.print(f"hotplate: {never_published(url)}")

    def announce(addresses: Addresses) -> None:
        err.print(
            f"serving {named} on {addresses.service}, and for operators on {addresses.admin}; "
            f"probes are answered on {addresses.health}"
        )

    run(chosen, announce)


def lookup(
    user: Annotated[str, Argument("The user's id, exactly as in the interactions.", "USER")],
    store: StoreUrl = None,
    n: Annotated[int, Flag("Show this many items.", name="-n", at_least=1, at_most=1000)] = 10,
    segment: Annotated[str, Flag("Fall back to the popular list of this segment.")] = "",
    name: Annotated[str, Flag("The name of a list; by default the default list.", name="list")] = "",
    as_json: Json = False,
) -> None:
    """Show the list that the service would answer for one user.

    Example: hotplate lookup 12347 -n 5

    A named list: hotplate lookup 12347 --list basket
    """
    from hotplate.serve.embedded import Lists
    from hotplate.serve.reader import TieredReader
    from hotplate.serve.shaping import Selection
    from hotplate.stores.encoding import check_id

    async def read(opened: "Store") -> "Recommendations":
        reader = TieredReader({"store": opened}, budget_s=10.0)
        await reader.tiers[0].follower.refresh()
        return Lists(reader).decoded(await reader.personal(check_id(user), segment, name), Selection(n))

    found = with_store(store, read)
    more: dict[str, object] = ({"canary": True} if found.canary else {}) | ({"list": found.list} if found.list else {})
    rows = [(item["id"], item["score"], item.get("title")) for item in found.items]
    print_result(
        {"user": user, "release": found.release, **more, "source": found.source, "items": found.items},
        f"{user}: {found.source}{' in ' * bool(found.list)}{found.list}, release {found.release}"
        f"{', the canary' if found.canary else ''}",
        table(("item", "score", "title"), rows),
        as_json=as_json,
    )


def demo(
    data: Annotated[Path | None, Flag("Train on this file or folder instead of sample data.", urls=True)] = None,
    host: Annotated[str, Flag("The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Flag("The port; 0 takes any free one.", at_least=0, at_most=65535)] = 8080,
) -> None:
    """Train on sample data, publish, serve, and print examples; stop it with Ctrl-C.

    All files are in a temporary folder, which is removed at the end.

    Example: hotplate demo --data clicks.csv
    """
    from hotplate.cli.demonstration import demonstrate

    demonstrate(data, host=host, port=port)


@keys.command()
def create(
    name: ClientName,
    file: KeysFile,
    scope: Annotated[
        list[str] | None,
        Flag("Allow a new client to read, events or admin; repeatable.", metavar="SCOPE", prefix="KEYS_"),
    ] = None,
    rate: Annotated[
        float | None, Flag("Limit a new client to N requests/s.", metavar="N", at_least=0.001, prefix="KEYS_")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a key for a client and print it once; the file holds its SHA-256.

    An existing client gets a second key. To rotate: create, give the client the new key, then revoke the primary. A
    running service picks up changes within two seconds.

    Example: hotplate keys create web --scope read --rate 500 --keys /etc/hotplate/keys.json
    """
    from hotplate.serve.access.keys import create as create_key

    made = create_key(file, name, scope or [], rate)
    if as_json:
        print_json(made)
        return
    out.print(made.key)
    err.print(f"This is the {made.kind} key of {made.client}. Keep it now: it cannot be shown again.")


@keys.command("list")
def list_clients(file: KeysFile, as_json: Json = False) -> None:
    """List the clients, their scopes, and the dates of their keys.

    Example: hotplate keys list --keys /etc/hotplate/keys.json
    """
    from hotplate.serve.access.keys import load

    clients = load(file)
    rows = list[tuple[object, ...]]()
    for one in clients:
        days = [time.strftime("%Y-%m-%d", time.gmtime(key.created_at)) for key in one.keys]
        rows.append((one.name, ", ".join(one.scopes), one.rate, *days, *[""] * (2 - len(days))))
    headings = ("client", "scopes", "requests/s", "primary", "secondary")
    print_result([one.described() for one in clients], table(headings, rows), as_json=as_json)


@keys.command()
def revoke(
    name: ClientName,
    file: KeysFile,
    primary: Annotated[bool, Flag("Revoke the primary key only; the secondary replaces it.", env=False)] = False,
    secondary: Annotated[bool, Flag("Revoke the secondary key only.", env=False)] = False,
    as_json: Json = False,
) -> None:
    """Revoke one key of a client, or all without --primary and --secondary.

    A running service refuses it within two seconds.

    Example: hotplate keys revoke web --primary --keys /etc/hotplate/keys.json
    """
    from hotplate.serve.access.keys import revoke as revoke_key

    kind = None if primary == secondary else "primary" if primary else "secondary"
    left = revoke_key(file, name, kind)
    answer = {"name": name, "revoked": kind or "all", "keys_left": 0 if left is None else len(left.digests())}
    gone = [f"{name} had no other key, and is removed"] if left is None and kind else []
    print_result(answer, f"revoked the {kind} key of {name}" if kind else f"revoked {name}", *gone, as_json=as_json)


@events.command()
def ship(
    folder: Annotated[Path, Argument("The folder of `hotplate serve --events`.", "FOLDER")],
    to: Annotated[
        str, Flag("A folder or a URL of an installed fsspec file system, as abfs://…", metavar="URL", prefix="EVENTS_")
    ],
    as_json: Json = False,
) -> None:
    """Move closed segments to another place; each is removed here after a complete copy.

    A service closes a segment after five minutes at most; segments of killed workers are closed here. An interrupted
    command can be repeated.

    Example: hotplate events ship /var/lib/hotplate/events --to /backup/events
    """
    from hotplate.serve.events import ship as ship_segments
    from hotplate.stores.urls import redacted

    with progress_bars() as on_progress:
        shipped = ship_segments(folder, to, partial(on_progress, "ship"))
    if as_json:
        print_json(shipped)
        return
    out.print(f"shipped {counted(shipped.segments, 'segment')}, {shipped.bytes / 1e6:,.1f} MB, to {redacted(to)}")
    if shipped.recovered:
        out.print(f"{shipped.recovered} of them are of workers that were killed")


@events.command()
def report(
    source: Annotated[str, Argument("A folder of closed segments, or its URL.", "FOLDER|URL")],
    goal: Annotated[
        str | None, Flag("Compare an experiment's arms by a type of event, or its value: buy:value.", env=False)
    ] = None,
    min_effect: Annotated[float, Flag("The smallest change worth finding, in percent.", at_least=0.1)] = 5.0,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Report the click-through rate by release, role (live, canary or other) and position in the list.

    Duplicates by event id count once. Intervals (95 %) assume independent impressions, and are too narrow if a few
    users saw many items. With --goal, compare the arms of the store's running or last experiment instead, by user.

    Example: hotplate events report /var/lib/hotplate/events

    An experiment: hotplate events report /var/lib/hotplate/events --goal buy:value --min-effect 3
    """
    from hotplate.serve.events import report as count

    arms = None if goal is None else with_store(store, partial(_arm_events, goal))
    with progress_bars() as on_progress:
        found = count(source, partial(on_progress, "report"), arms=arms)
    compared = None if arms is None else arms.report(min_effect / 100)
    if as_json:
        rows = [{**row._asdict(), "ctr": row.ctr, "interval": row.interval} for row in found.rows]
        facts = {each.name: getattr(found, each.name) for each in fields(found)} | {"rows": rows}
        print_json(facts if compared is None else facts | {"arms": compared})
        return
    _print_counts(found)
    if compared is None:
        out.print(table(("release", "role", "position", "shown", "clicked", "rate", "95 %"), map(_cells, found.rows)))
        return
    means = [f"{mean:.4g}" for mean in compared.means]
    arm_a, arm_b = zip(compared.users, means, compared.users_needed or ("", ""), strict=True)
    headings = ("arm", "users", f"{goal} per user", f"users to find ±{min_effect:g} %")
    out.print(table(headings, (("A", *arm_a), ("B", *arm_b))))
    change = "" if compared.interval is None else ", B minus A {:+.4g} to {:+.4g} (95 %)".format(*compared.interval)
    out.print(f"{compared.verdict}{change}; horizon {datetime.fromtimestamp(compared.experiment.ends_at, UTC):%F %RZ}")


def _print_counts(found: "EventReport") -> None:
    types = ", ".join(f"{number:,} {name}" for name, number in sorted(found.types.items()))
    out.print(
        f"{counted(found.events, 'event')} in {counted(found.segments, 'segment')}{f': {types}' if types else ''}"
    )
    left_out = (
        (found.open_segments, "open segments", "still written, or of a killed service"),
        (found.duplicates, "events", "sent again under the same id"),
        (found.damaged, "lines", "damaged"),
    )
    for number, what, reason in left_out:
        if number:
            out.print(f"  {number:,} {what} left out: {reason}")


async def _arm_events(goal: str, store: "Store") -> "ArmEvents":
    from hotplate.serve.experiments import ArmEvents
    from hotplate.stores.erasure_log import read_erased
    from hotplate.stores.errors import ReleaseNotFound

    found = await store.catalogue()
    if found.experiment is None:
        raise ReleaseNotFound("no experiment was started in this store; `hotplate releases canary --days` starts one")
    return ArmEvents(found.experiment, goal, found.now, await read_erased(store, found))


def _cells(row: "ListedItems") -> tuple[str, ...]:
    rate = "" if row.ctr is None else f"{row.ctr:.2%}"
    interval = "" if row.interval is None else f"{row.interval[0]:.2%} to {row.interval[1]:.2%}"
    return (
        row.release or "none named",
        row.role,
        row.position,
        f"{row.impressions:,}",
        f"{row.clicks:,}",
        rate,
        interval,
    )
