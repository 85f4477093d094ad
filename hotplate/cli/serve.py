"""`hotplate serve`: the HTTP service."""

import os
from pathlib import Path
from typing import Annotated, Literal

from hotplate.cli.terminal import chosen_store, err, option

Host = Annotated[str, option("--host", "Listen on this address; by default on this machine only.")]
Port = Annotated[int, option("--port", "Listen on this port; 0 takes any free one.", at_least=0, at_most=65535)]


def serve(
    store: Annotated[
        list[str] | None,
        option(
            "--store",
            "Serve the store at this URL. Each further --store is a tier that answers when those before it cannot. "
            "By default it is a folder in your own data directory.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    workers: Annotated[
        int,
        option(
            "--workers", "Share the port among this many processes; best one for each core.", at_least=1, at_most=256
        ),
    ] = 1,
    pin_workers: Annotated[
        bool,
        option(
            "--pin-workers",
            "Keep each worker on a CPU of its own, of those that the service may use; for machines and pods that have "
            "these CPUs to themselves.",
        ),
    ] = False,
    budget: Annotated[
        float, option("--budget", "Spend at most this many seconds on the reads of one request.", at_least=0.001)
    ] = 0.05,
    cache_mb: Annotated[
        int,
        option(
            "--cache-mb",
            "Keep so many MB of the lists that were read over a network in each worker, so a hot one costs the "
            "store one read; 0 keeps none. A store in files has no need of it.",
            at_least=0,
        ),
    ] = 64,
    drain_delay: Annotated[
        float,
        option(
            "--drain-delay",
            "After SIGTERM, go on answering for this many seconds while /readyz says 503, so load balancers send "
            "their requests elsewhere before the port closes; Ctrl-C skips it.",
            at_least=0,
        ),
    ] = 5.0,
    drain: Annotated[
        float, option("--drain", "Wait at a stop at most this many seconds for requests in flight.", at_least=0)
    ] = 10.0,
    admin_host: Annotated[
        str,
        option("--admin-host", "Let operators reach metrics and releases on this address; by default this machine."),
    ] = "127.0.0.1",
    admin_port: Annotated[
        int, option("--admin-port", "The port for operators; 0 takes any free one.", at_least=0, at_most=65535)
    ] = 8090,
    health_host: Annotated[
        str, option("--health-host", "Let probes reach /livez and /readyz on this address; by default this machine.")
    ] = "127.0.0.1",
    health_port: Annotated[
        int,
        option(
            "--health-port",
            "The port for probes, in plain HTTP and without a key; 0 takes any free one.",
            at_least=0,
            at_most=65535,
        ),
    ] = 8091,
    admin_store: Annotated[
        str | None,
        option(
            "--admin-store",
            "Let operators activate and roll back releases of the store at this URL, with the right to write.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    access_log: Annotated[
        float,
        option(
            "--access-log",
            "Log this share of all requests, as JSON lines without keys and queries; 0 logs none, 1 all.",
            metavar="SHARE",
            at_least=0,
            at_most=1,
        ),
    ] = 0.0,
    access_log_users: Annotated[
        Literal["hashed", "none", "plain"],
        option(
            "--access-log-users",
            "How lines of the access log stand for users: by a hash with a key that is new each day, not at all, or by "
            "their ids.",
        ),
    ] = "hashed",
    access_log_key: Annotated[
        Path | None,
        option(
            "--access-log-key",
            "Hash users with the secret in this file, so several services hash alike; by default it is drawn at "
            "each start.",
            metavar="FILE",
        ),
    ] = None,
    slow_request_ms: Annotated[
        float | None,
        option(
            "--slow-request-ms",
            "Log each request, at most 10 a second of each worker, that took this many milliseconds or more.",
            at_least=0,
            show_default=False,
        ),
    ] = None,
    telemetry: Annotated[
        Literal["otlp", "azure-monitor"] | None,
        option(
            "--telemetry",
            "Send traces and metrics by OpenTelemetry, as its environment variables say (OTEL_EXPORTER_OTLP_ENDPOINT, "
            "OTEL_TRACES_SAMPLER, …).",
            show_default=False,
        ),
    ] = None,
    scrub_rate: Annotated[
        float,
        option(
            "--scrub-rate",
            "Read so many rows of what is served a second in the background, and check each; 0 reads none.",
            metavar="ROWS_PER_S",
            at_least=0,
        ),
    ] = 0.0,
    lock_memory: Annotated[
        bool,
        option(
            "--lock-memory",
            "Lock what is served of a file:// store in memory, so no other process can evict it; each "
            "worker must be allowed to (ulimit -l).",
        ),
    ] = False,
    keys: Annotated[
        Path | None,
        option(
            "--keys",
            "Let in who has a key in this file (hotplate keys create makes one); changes are taken up without a "
            "restart. Without it, everybody on this machine may call.",
            metavar="FILE",
        ),
    ] = None,
    anonymous: Annotated[
        bool, option("--anonymous", "Let callers without a key read, also from other machines.")
    ] = False,
    tls_cert: Annotated[
        Path | None,
        option(
            "--tls-cert",
            "Speak TLS, with the certificate chain in this PEM file; a renewed one is taken up without a restart.",
            metavar="FILE",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, option("--tls-key", "The key of the certificate, in PEM without a password.", metavar="FILE")
    ] = None,
    oidc_issuer: Annotated[
        str | None,
        option("--oidc-issuer", "Let in who has a token of this OpenID Connect issuer, as Entra ID.", metavar="URL"),
    ] = None,
    oidc_audience: Annotated[
        str | None, option("--oidc-audience", "What the issuer's tokens for this service are for.", metavar="AUDIENCE")
    ] = None,
    deny_list: Annotated[
        Path | None,
        option(
            "--deny-list",
            "Never show the items of this file, and answer its users as unknown: lines of item:ID and user:ID. "
            "It is read again when it changes.",
            metavar="FILE",
        ),
    ] = None,
    fold_in: Annotated[
        bool,
        option(
            "--fold-in",
            "Make lists for visitors on the spot, by the items that they have; each worker keeps the item factors of "
            "what is live in memory, which `hotplate publish --fold-in` wrote.",
        ),
    ] = False,
    events: Annotated[
        Path | None,
        option(
            "--events",
            "Take events, what was shown and clicked, at POST /v1/events, and write them to this folder; without it "
            "there is no such route.",
            metavar="FOLDER",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        option(
            "--cors-origin",
            "Let web pages of this origin call the service, as https://shop.example; it may be given several times.",
            metavar="URL",
        ),
    ] = None,
    no_fast_lane: Annotated[
        bool, option("--no-fast-lane", "Have aiohttp answer the plainest requests, too, which takes longer.")
    ] = False,
    max_connections: Annotated[
        int, option("--max-connections", "Keep at most so many connections open in each worker.", at_least=1)
    ] = 10_000,
    trusted_proxy: Annotated[
        list[str] | None,
        option(
            "--trusted-proxy",
            "Let the addresses in this network open any number of connections, as a proxy or a load balancer must; "
            "may be repeated. Every other address has at most a fifth of them, and so has every key.",
            metavar="CIDR",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve the live release of a store over HTTP, and follow it from release to release.

    Example: hotplate serve --store redis://cache:6379/0 --store file:///var/lib/hotplate --workers 2
    """
    from serve.errors import ServiceMisused
    from serve.processes.supervisor import Addresses
    from serve.processes.supervisor import serve as run
    from serve.settings import Limits, Settings, configure_logging
    from serve.telemetry.settings import read_telemetry
    from stores.errors import StoreMisused
    from stores.urls import redacted

    urls = tuple(map(chosen_store, store)) if store else (chosen_store(None),)
    if any(url.startswith("memory:") for url in urls):
        raise StoreMisused("memory:// is for tests: it is empty, and gone with the process; serve a file:// store")
    if keys is None and os.environ.get("HOTPLATE_KEYS") == "":
        raise ServiceMisused("HOTPLATE_KEYS is empty; name the file of keys, or unset it to serve without keys")
    configure_logging()
    part = max(1, max_connections // 5)
    limits = Limits(
        connections=max_connections, per_address=part, per_client=part, trusted_proxies=networks(trusted_proxy)
    )
    settings = Settings(
        urls,
        host,
        port,
        workers,
        pin_workers=pin_workers,
        budget_s=budget,
        cache_bytes=cache_mb << 20,
        drain_delay_s=drain_delay,
        drain_s=drain,
        admin_host=admin_host,
        admin_port=admin_port,
        health_host=health_host,
        health_port=health_port,
        admin_store=admin_store,
        access_log_share=access_log,
        access_log_users=access_log_users,
        access_log_key=access_log_key,
        telemetry=read_telemetry(telemetry),
        slow_request_s=None if slow_request_ms is None else slow_request_ms / 1000,
        scrub_rows_per_s=scrub_rate,
        lock_memory=lock_memory,
        keys=keys,
        anonymous=anonymous,
        tls_cert=tls_cert,
        tls_key=tls_key,
        oidc_issuer=oidc_issuer,
        oidc_audience=oidc_audience,
        deny_list=deny_list,
        fold_in=fold_in,
        events=events,
        cors_origins=tuple(cors_origin or ()),
        fast_lane=not no_fast_lane,
        limits=limits,
    )
    named = ", ".join(map(redacted, urls))

    def announce(addresses: Addresses) -> None:
        err.print(
            f"serving {named} on {addresses.service}, and for operators on {addresses.admin}; "
            f"probes are answered on {addresses.health}"
        )

    run(settings, announce)


def networks(given: list[str] | None) -> tuple[str, ...]:
    """Check networks, as 10.0.0.0/8; raises StoreMisused for anything else."""
    from ipaddress import ip_network

    from stores.errors import StoreMisused

    for network in given or ():
        try:
            ip_network(network)
        except ValueError as error:
            raise StoreMisused(f"--trusted-proxy takes a network, as 10.0.0.0/8: {error}") from None
    return tuple(given or ())
