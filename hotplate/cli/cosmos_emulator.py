"""`hotplate cosmos-emulator`: a local Cosmos DB for NoSQL that counts request units and throttles."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson

from hotplate.cli.terminal import Json, option, out

if TYPE_CHECKING:
    from hotplate.bench.cosmos_emulator.server import RunningEmulator, Settings

_option = partial(option, prefix="COSMOS_EMULATOR_")
_port = partial(_option, at_least=0, at_most=65535)


def cosmos_emulator(
    host: Annotated[str, _option("--host", "Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, _port("--port", "Listen on this port; 0 takes any free one.")] = 8081,
    second_region: Annotated[
        int | None,
        _port(
            "--second-region",
            "Add a second region, for reads, that listens on this port; 0 takes any free one.",
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
    from hotplate.bench.cosmos_emulator.auth import WELL_KNOWN_KEY
    from hotplate.bench.cosmos_emulator.errors import EmulatorMisused
    from hotplate.bench.cosmos_emulator.server import Settings, serve
    from hotplate.bench.errors import BenchMisused

    logging.getLogger("hotplate.bench.cosmos_emulator").addHandler(logging.StreamHandler())
    key = WELL_KNOWN_KEY if key_file is None else key_file.read_text().strip()
    settings = Settings(
        host, port, second_region, key, key_file, consistency, charges, tls, certificate, entra_issuer, faults
    )
    try:
        serve(settings, lambda emulator: _print_ready(emulator, settings, as_json=as_json))
    except EmulatorMisused as error:
        raise BenchMisused(str(error)) from error


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
        lines.append("from hotplate.bench.cosmos_emulator.auth import WELL_KNOWN_KEY  # the published key of emulators")
    lines.append(f'client = azure.cosmos.CosmosClient("{endpoint}", {key})')
    lines.append(f"metrics: {endpoint}__emulation/metrics, faults: {endpoint}__emulation/faults")
    out.print("\n".join(lines))
