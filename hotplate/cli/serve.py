"""The verbs of the service: `hotplate serve`, `lookup` and `demo`."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from hotplate.base.recommendations import ITEM_FIELDS, Recommendations
from hotplate.cli.terminal import StoreUrl, err, print_result, run_on_store, store_url_or_default, table
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.log_lines import configure_logging
from hotplate.serve.settings import LOGS, ServiceSettings, read_telemetry
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import USER, check_id
from hotplate.stores.options import Argument, Flag
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

if TYPE_CHECKING:
    from hotplate.serve.lists.requests import ListRequest


def serve(
    settings: ServiceSettings,
    telemetry: Annotated[
        Literal["otlp", "azure-monitor"] | None,
        Flag("Send traces and metrics there, as the variables OTEL_… say.", LOGS),
    ] = None,
) -> None:
    """Serve the live release of a store over HTTP, and follow it from release to release.

    Example: hotplate serve --store redis://cache:6379/0 --store file:///var/lib/hotplate --workers 2

    Withdraw bad releases: hotplate serve --store redis://cache:6379/0 --probation 5m

    Live stock: hotplate serve --overrides stock.csv --events /var/lib/events --hide-consumed buy=24

    On several hosts: hotplate serve --events /var/lib/events --hide-consumed buy=24 --share-consumed redis://cache:6379/0
    """
    from hotplate.serve.processes.supervisor import Addresses
    from hotplate.serve.processes.supervisor import serve as run_service
    from hotplate.stores.connect import check_single, lacks_folder, never_published

    urls = tuple(map(store_url_or_default, settings.stores)) if settings.stores else (store_url_or_default(None),)
    if settings.keys is None and os.environ.get("HOTPLATE_KEYS") == "":
        raise ServiceMisused("HOTPLATE_KEYS is empty; name the file of keys, or unset it to serve without keys")

    configure_logging()
    for url in urls:
        check_single(url)
        if lacks_folder(url):
            err.print(f"hotplate: {never_published(url)}")

    def announce(addresses: Addresses) -> None:
        stores = ", ".join(map(redacted, urls))
        err.print(
            f"serving {stores} on {addresses.service}, and for operators on {addresses.admin}; "
            f"probes are answered on {addresses.health}"
        )

    run_service(replace(settings, stores=urls, telemetry=read_telemetry(telemetry)), announce)


def lookup(
    user: Annotated[str, Argument("The user's id, exactly as in the interactions.", "USER")],
    store: StoreUrl = None,
    n: Annotated[int, Flag("Show this many items.", name="-n", at_least=1, at_most=1000)] = 10,
    segment: Annotated[str, Flag("Fall back to the popular list of this segment.", metavar="SEGMENT")] = "",
    name: Annotated[str, Flag("The name of a list; by default the default list.", name="list", metavar="NAME")] = "",
    release: Annotated[str | None, Flag("Look at this release, live or not.", env=False, metavar="RELEASE")] = None,
) -> None:
    """Show the list that the service would answer for one user.

    Example: hotplate lookup 12347 -n 5

    A named list: hotplate lookup 12347 --list basket

    Before it goes live: hotplate lookup 12347 --release 20261120T064200Z-7f3a
    """
    from hotplate.serve.lists.options import Selection
    from hotplate.serve.lists.requests import ListRequest

    request = ListRequest(USER, check_id(user), selection=Selection(n, segment=segment, list=name))
    answer = run_on_store(store, partial(_answer_request, request, release))
    _print_list(user, answer)


async def _answer_request(request: "ListRequest", release: str | None, store: Store) -> Recommendations:
    """Return what a service that reads only *store* would answer to *request*, perhaps in another *release*."""
    from hotplate.serve.embedded import recommendations_of
    from hotplate.serve.lists.reader import TieredReader
    from hotplate.serve.lists.requests import answer_list
    from hotplate.serve.lists.shaping import Shaper

    reader = TieredReader({"store": store}, budget_s=10.0)
    if release is not None:
        async with reader.preview(ReleaseId(release)) as preview:
            return recommendations_of(await answer_list(preview, Shaper(reader.deny_list), request))
    await reader.tiers[0].follower.refresh()  # reads the catalogue
    return recommendations_of(await answer_list(reader, Shaper(reader.deny_list), request))


def _print_list(user: str, answer: Recommendations) -> None:
    """Print a user's list, as JSON or text, with its source, as "personal", and its release.

    JSON has `canary` only if the release is the canary, which a share of the users gets, and `list` only for a named
    list.
    """
    facts: dict[str, object] = {"user": user, "release": answer.release}
    source = answer.source
    if answer.canary:
        facts["canary"] = True
    if answer.list:
        facts["list"] = answer.list
        source += f" in {answer.list}"
    facts |= {"source": answer.source, "items": answer.items}

    role = ", the canary" if answer.canary else ""
    sentence = f"{user}: {source}, release {answer.release}{role}"
    rows = [[item.get(name) for name in ITEM_FIELDS] for item in answer.items]
    print_result(facts, sentence, table(("item", *ITEM_FIELDS[1:]), rows))


def demo(
    data: Annotated[Path | None, Flag("Train on this file or folder instead of sample data.", urls=True)] = None,
    host: Annotated[str, Flag("The address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, Flag("The port; 0 takes any free one.", at_least=0, at_most=65535)] = 8080,
) -> None:
    """Train on sample data, publish, serve, and print examples; stop it with Ctrl-C.

    All files are in a temporary folder, which is removed at the end.

    Example: hotplate demo --data clicks.csv
    """
    from hotplate.cli.demo_work import demonstrate

    demonstrate(data, host=host, port=port)
