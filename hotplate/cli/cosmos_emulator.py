"""`hotplate cosmos-emulator`: a local Cosmos DB for NoSQL that counts request units and throttles."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from hotplate.cli.terminal import MISUSED, Json, err, out

if TYPE_CHECKING:
    from bench.cosmos_emulator.server import RunningEmulator, Settings

MOST_PORT = 65535


def _option(flag: str, text: str) -> typer.models.OptionInfo:
    name = flag.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    highest = MOST_PORT if flag in ("--port", "--second-region") else None
    made: typer.models.OptionInfo = typer.Option(
        flag, envvar=f"HOTPLATE_COSMOS_EMULATOR_{name}", help=text, min=None if highest is None else 0, max=highest
    )
    return made


def cosmos_emulator(
    host: Annotated[str, _option("--host", "The address to listen on; loopback unless told otherwise.")] = "127.0.0.1",
    port: Annotated[int, _option("--port", "The port; 0 takes any free one.")] = 8081,
    second_region: Annotated[
        int | None, _option("--second-region", "A port for a second region, for reads; 0 takes any free one.")
    ] = None,
    key_file: Annotated[
        Path | None, _option("--key-file", "The account's key, base64; without it, the published key of emulators.")
    ] = None,
    consistency: Annotated[str, _option("--consistency", "The account's default consistency.")] = "Session",
    burst: Annotated[bool, _option("--burst", "Bank idle throughput for bursts, as accounts can.")] = False,
    tls: Annotated[bool, _option("--tls", "HTTPS, with a certificate that is made at the start.")] = False,
    certificate: Annotated[
        Path | None, _option("--certificate", "With --tls: where to write the certificate, for clients to trust.")
    ] = None,
    charges: Annotated[
        Path | None, _option("--charges", "Your own coefficients, in the form of our charges.toml.")
    ] = None,
    faults: Annotated[Path | None, _option("--faults", "Faults to begin with, as a JSON file.")] = None,
    entra_issuer: Annotated[
        bool, _option("--entra-issuer", "Give test tokens at /__emulation/token to whoever asks, and accept them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Emulate Azure Cosmos DB for NoSQL in memory, with request units and 429s. It is not the service.

    Example: hotplate cosmos-emulator --port 8081 --key-file account.key
    """
    from bench.cosmos_emulator.auth import WELL_KNOWN_KEY
    from bench.cosmos_emulator.errors import EmulatorMisused
    from bench.cosmos_emulator.server import Settings, serve

    logging.getLogger("bench.cosmos_emulator").addHandler(logging.StreamHandler())
    try:
        settings = Settings(
            host,
            port,
            second_region,
            key=WELL_KNOWN_KEY if key_file is None else key_file.read_text().strip(),
            key_file=key_file,
            consistency=consistency,
            burst=burst,
            charges=charges,
            tls=tls,
            certificate=certificate,
            entra=entra_issuer,
            faults=faults,
        )
        serve(settings, lambda made: _tell(made, settings, as_json=as_json))
    except EmulatorMisused as error:
        err.print("hotplate: ", str(error).rstrip("."), ".", sep="", markup=False)
        raise typer.Exit(MISUSED) from None


def _tell(made: "RunningEmulator", settings: "Settings", *, as_json: bool) -> None:
    """Say where it listens, and how to connect; one line of JSON for programs."""
    if as_json:
        sys.stdout.write(orjson.dumps({"endpoint": made.endpoint, "ports": made.ports}).decode() + "\n")
        sys.stdout.flush()
        return
    key = f'open("{settings.key_file}").read().strip()' if settings.key_file else "WELL_KNOWN_KEY"
    out.print(f"emulating Cosmos DB for NoSQL on {made.endpoint} (an emulation, in memory; not Azure)", markup=False)
    if len(made.ports) > 1:
        out.print(f"second region, for reads: port {made.ports[1]}", markup=False)
    if not settings.key_file:
        out.print(
            "from bench.cosmos_emulator.auth import WELL_KNOWN_KEY  # the published key of emulators", markup=False
        )
    out.print(f'client = azure.cosmos.CosmosClient("{made.endpoint}", {key})', markup=False)
    out.print(f"faults, metrics and state: {made.endpoint}__emulation/", markup=False)
