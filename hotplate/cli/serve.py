"""`hotplate serve`: the HTTP service."""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

from hotplate.cli.terminal import chosen_store, err
from hotplate.serve.settings import LOGS, Settings, configure_logging
from hotplate.stores.options import Flag


def serve(
    settings: Settings,
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
    from hotplate.stores.errors import StoreMisused
    from hotplate.stores.urls import redacted

    urls = tuple(map(chosen_store, settings.stores)) if settings.stores else (chosen_store(None),)
    if any(url.startswith("memory:") for url in urls):
        raise StoreMisused("memory:// is for tests: it is empty, and gone with the process; serve a file:// store")
    if settings.keys is None and os.environ.get("HOTPLATE_KEYS") == "":
        raise ServiceMisused("HOTPLATE_KEYS is empty; name the file of keys, or unset it to serve without keys")
    configure_logging()
    check_networks(settings.limits.trusted_proxies)
    part = max(1, settings.limits.connections // 5)
    limits = replace(settings.limits, per_address=part, per_client=part)
    chosen = replace(settings, stores=urls, telemetry=read_telemetry(telemetry), limits=limits)
    named = ", ".join(map(redacted, urls))

    def announce(addresses: Addresses) -> None:
        err.print(
            f"serving {named} on {addresses.service}, and for operators on {addresses.admin}; "
            f"probes are answered on {addresses.health}"
        )

    run(chosen, announce)


def check_networks(given: Iterable[str]) -> None:
    """Raise StoreMisused for what is not a network, as 10.0.0.0/8 is."""
    from ipaddress import ip_network

    from hotplate.stores.errors import StoreMisused

    for network in given:
        try:
            ip_network(network)
        except ValueError as error:
            raise StoreMisused(f"--trusted-proxy takes a network, as 10.0.0.0/8: {error}") from None
