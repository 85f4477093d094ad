"""`hotplate serve`: the HTTP service."""

from typing import Annotated

import typer

from hotplate.cli.terminal import err

Host = Annotated[
    str, typer.Option(envvar="HOTPLATE_HOST", help="The address to listen on; by default this machine only.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, envvar="HOTPLATE_PORT", help="The port; 0 takes any free one.")]
Workers = Annotated[
    int,
    typer.Option(
        min=1, max=256, envvar="HOTPLATE_WORKERS", help="How many processes share the port; best one for each core."
    ),
]


def serve(
    store: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            envvar="HOTPLATE_STORE",
            help="The store to serve. Each further --store is a tier that answers when those before it cannot. "
            "The default is a folder in your own data directory.",
            show_default=False,
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    workers: Workers = 1,
    budget: Annotated[
        float,
        typer.Option(min=0.001, envvar="HOTPLATE_BUDGET", help="Seconds that one request may spend on reads."),
    ] = 0.05,
    drain: Annotated[
        float,
        typer.Option(min=0, envvar="HOTPLATE_DRAIN", help="Seconds that a stop waits for requests in flight."),
    ] = 10.0,
) -> None:
    """Serve the live release of a store over HTTP, and follow it from release to release.

    Example: hotplate serve --store redis://cache:6379/0 --store file:///var/lib/hotplate --workers 2
    """
    from serve.process import serve as run
    from serve.settings import Settings, configure_logging
    from stores.connect import default_url, redacted
    from stores.errors import StoreMisused

    urls = tuple(store or [default_url()])
    if any(url.startswith("memory:") for url in urls):
        raise StoreMisused("memory:// is for tests: it is empty, and gone with the process; serve a file:// store")
    configure_logging()
    settings = Settings(urls, host, port, workers, budget_s=budget, drain_s=drain)
    named = ", ".join(map(redacted, urls))
    run(settings, lambda address: err.print(f"serving {named} on {address}", markup=False))
