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

MAX_PORT = 65535


def _option(flag: str, text: str, *, is_port: bool = False) -> typer.models.OptionInfo:
    name = flag.removeprefix("--").replace("-", "_").upper()
    low, high = (0, MAX_PORT) if is_port else (None, None)
    envvar = f"HOTPLATE_COSMOS_EMULATOR_{name}"
    option: typer.models.OptionInfo = typer.Option(flag, envvar=envvar, help=text, min=low, max=high)
    return option


def cosmos_emulator(
    host: Annotated[str, _option("--host", "Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, _option("--port", "Listen on this port; 0 takes any free one.", is_port=True)] = 8081,
    second_region: Annotated[
        int | None,
        _option(
            "--second-region",
            "Add a second region, for reads, that listens on this port; 0 takes any free one.",
            is_port=True,
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        _option("--key-file", "Read the account's key, in base64, from this file. The default is the published key."),
    ] = None,
    consistency: Annotated[
        str,
        _option(
            "--consistency",
            "Set the account's default consistency: Strong, BoundedStaleness, Session, ConsistentPrefix or Eventual.",
        ),
    ] = "Session",
    burst: Annotated[
        bool, _option("--burst", "Let partitions bank idle throughput for bursts, as accounts can.")
    ] = False,
    tls: Annotated[bool, _option("--tls", "Serve HTTPS with a certificate that is made at the start.")] = False,
    certificate: Annotated[
        Path | None, _option("--certificate", "Write the certificate of --tls to this file, for clients to trust.")
    ] = None,
    charges: Annotated[
        Path | None, _option("--charges", "Charge by your own coefficients, in a file like our charges.toml.")
    ] = None,
    faults: Annotated[Path | None, _option("--faults", "Start with the faults of this JSON file.")] = None,
    entra_issuer: Annotated[
        bool, _option("--entra-issuer", "Issue test tokens at /__emulation/token to any caller, and accept them.")
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
        serve(settings, lambda emulator: _print_ready(emulator, settings, as_json=as_json))
    except EmulatorMisused as error:
        err.print("hotplate: ", str(error).rstrip("."), ".", sep="", markup=False)
        raise typer.Exit(MISUSED) from None


def _print_ready(emulator: "RunningEmulator", settings: "Settings", *, as_json: bool) -> None:
    """Print where it listens, and how to connect; one line of JSON for programs."""
    if as_json:
        sys.stdout.write(orjson.dumps({"endpoint": emulator.endpoint, "ports": emulator.ports}).decode() + "\n")
        sys.stdout.flush()
        return
    endpoint = emulator.endpoint
    key = f'open("{settings.key_file}").read().strip()' if settings.key_file else "WELL_KNOWN_KEY"
    lines = [f"emulating Cosmos DB for NoSQL on {endpoint} (an emulation, in memory; not Azure)"]
    if len(emulator.ports) > 1:
        lines.append(f"second region, for reads: port {emulator.ports[1]}")
    if not settings.key_file:
        lines.append("from bench.cosmos_emulator.auth import WELL_KNOWN_KEY  # the published key of emulators")
    lines.append(f'client = azure.cosmos.CosmosClient("{endpoint}", {key})')
    lines.append(f"faults, metrics and state: {endpoint}__emulation/")
    out.print("\n".join(lines), markup=False)
