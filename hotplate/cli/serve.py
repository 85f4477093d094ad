"""`hotplate serve`, `lookup` and `demo`: the HTTP service, what it would answer one user, and all of it at once."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote as quoted
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

import typer

from hotplate.cli.terminal import (
    Json,
    StoreUrl,
    chosen_store,
    err,
    interruptible,
    out,
    print_result,
    progress_bars,
    table,
    with_store,
)
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
    from hotplate.serve.settings import read_telemetry
    from hotplate.stores.urls import redacted

    urls = tuple(map(chosen_store, settings.stores)) if settings.stores else (chosen_store(None),)
    if settings.keys is None and os.environ.get("HOTPLATE_KEYS") == "":
        raise ServiceMisused("HOTPLATE_KEYS is empty; name the file of keys, or unset it to serve without keys")
    configure_logging()
    chosen = replace(settings, stores=urls, telemetry=read_telemetry(telemetry))
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


def demo(
    data: Annotated[Path | None, Flag("Learn from this file or folder, and not from made-up data.")] = None,
    host: Annotated[str, Flag("The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Flag("The port; 0 takes any free one.", at_least=0, at_most=65535)] = 8080,
) -> None:
    """Train on sample data, publish, serve, and print what to try; stop it with Ctrl-C.

    Everything lies in a temporary folder, which is removed when the demo stops.

    Example: hotplate demo --data clicks.csv
    """
    from hotplate.cli.publish import PublishFlags, publish
    from hotplate.cli.train import print_report
    from hotplate.offline.input.sample import sample
    from hotplate.offline.training import TrainSettings, train
    from hotplate.serve.connections.listeners import reserve
    from hotplate.serve.processes.supervisor import serve as run
    from hotplate.stores.folders import temporary_folder

    with temporary_folder("demo") as folder:
        reserve(host, port).close()  # a port in use is better reported before the training than after
        if data is None:
            data = folder / "sample.parquet"
            sample().write_parquet(data)
        with progress_bars() as on_progress:
            report = interruptible(lambda: train(TrainSettings(path=data), folder / "model", on_progress))
        print_report(report)
        url = f"file://{folder / 'store'}"
        publish(folder / "model", PublishFlags(store=url))
        user, item = report.model.matrix.user_ids[0], report.model.matrix.item_ids[0]
        configure_logging()
        settings = ServiceSettings((url,), host, port, admin_port=0, health_port=0, admin_store=url, anonymous=True)
        run(settings, lambda addresses: _print_examples(addresses.service, addresses.admin, url, user, item))


def _print_examples(address: str, admin: str, store: str, user: str, item: str) -> None:
    paths = (f"recommendations/{quote(user, safe='')}?n=5", f"similar/{quote(item, safe='')}?n=5", "popular?n=5")
    out.print(f"\nhotplate is ready on {address}. Try, in another terminal:\n")
    for path in paths:
        out.print(f"  curl '{address}/v1/{path}'")
    command = "hotplate" if shutil.which("hotplate") else sys.argv[0]
    out.print(f"  {command} lookup {quoted(user)} --store {quoted(store)}")
    out.print(f"\nThe console is on {admin}/console, the metrics on {admin}/metrics.")
    out.print("Ctrl-C stops it and removes everything.")
