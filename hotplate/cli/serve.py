"""`hotplate serve` and `hotplate lookup`: the HTTP service, and what it would answer one user."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hotplate.cli.terminal import Json, StoreUrl, chosen_store, err, print_result, table, with_store
from hotplate.serve.settings import LOGS, ServiceSettings, configure_logging
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.serve.embedded import Recommendations
    from hotplate.stores.store import Store


def serve(
    settings: ServiceSettings,
    telemetry: Annotated[
        Literal["otlp", "azure-monitor"] | None,
        Flag("Traces and metrics, as OTEL_… variables say.", LOGS),
    ] = None,
) -> None:
    """Serve the live release of a store over HTTP, and follow it from release to release.

    Example: hotplate serve --store redis://cache:6379/0 --store file:///var/lib/hotplate --workers 2
    """
    from hotplate.serve.errors import ServiceMisused
    from hotplate.serve.processes.supervisor import Addresses
    from hotplate.serve.processes.supervisor import serve as run
    from hotplate.serve.telemetry.settings import read_telemetry
    from hotplate.stores.urls import redacted

    urls = tuple(map(chosen_store, settings.stores)) if settings.stores else (chosen_store(None),)
    if settings.keys is None and os.environ.get("HOTPLATE_KEYS") == "":
        raise ServiceMisused("HOTPLATE_KEYS is empty; name the file of keys, or unset it to serve without keys")
    configure_logging()
    limits = replace(settings.limits, per_client=max(1, settings.limits.connections // 5))
    chosen = replace(settings, stores=urls, telemetry=read_telemetry(telemetry), limits=limits)
    named = ", ".join(map(redacted, urls))

    def announce(addresses: Addresses) -> None:
        err.print(
            f"serving {named} on {addresses.service}, and for operators on {addresses.admin}; "
            f"probes are answered on {addresses.health}"
        )

    run(chosen, announce)


def lookup(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id, exactly as in the interactions.")],
    store: StoreUrl = None,
    n: Annotated[int, Flag("Show this many items.", name="-n", at_least=1, at_most=1000)] = 10,
    segment: Annotated[str, Flag("Fall back to the popular list of this segment.")] = "",
    as_json: Json = False,
) -> None:
    """Show the list that the service would answer for one user.

    Example: hotplate lookup 12347 -n 5
    """
    from hotplate.serve.embedded import Lists
    from hotplate.serve.reader import TieredReader
    from hotplate.stores.keys import check_id

    async def read(opened: "Store") -> "Recommendations":
        reader = TieredReader({"store": opened}, budget_s=10.0)
        await reader.tiers[0].follower.refresh()
        return Lists(reader).decoded(await reader.personal(check_id(user), segment), n)

    found = with_store(store, read)
    canary = {"canary": True} if found.canary else {}
    rows = [(item["id"], item["score"], item.get("title")) for item in found.items]
    print_result(
        {"user": user, "release": found.release, **canary, "source": found.source, "items": found.items},
        f"{user}: {found.source}, release {found.release}{', the canary' if found.canary else ''}",
        table(("item", "score", "title"), rows),
        as_json=as_json,
    )
