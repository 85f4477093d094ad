"""`hotplate cosmos-emulator`: a local Cosmos DB for NoSQL that counts request units and throttles."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson

from hotplate.cli.terminal import Json, out
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.bench.cosmos_emulator.server import EmulatorSettings, RunningEmulator

_flag = partial(Flag, prefix="COSMOS_EMULATOR_")
_port = partial(_flag, at_least=0, at_most=65535)


def cosmos_emulator(
    host: Annotated[str, _flag("Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, _port("Listen on this port; 0 takes any free one.")] = 8081,
    second_region: Annotated[
        int | None, _port("Add a second region, for reads, that listens on this port; 0 takes any free one.")
    ] = None,
    key_file: Annotated[
        Path | None, _flag("Read the account's key, in base64, from this file. The default is the published key.")
    ] = None,
    consistency: Annotated[
        str,
        _flag(
            "Set the account's default consistency: Strong, BoundedStaleness, Session, ConsistentPrefix or Eventual."
        ),
    ] = "Session",
    tls: Annotated[bool, _flag("Serve HTTPS with a certificate that is made at the start.")] = False,
    certificate: Annotated[
        Path | None, _flag("Write the certificate of --tls to this file, for clients to trust.")
    ] = None,
    charges: Annotated[Path | None, _flag("Charge by your own coefficients, in a file like our charges.toml.")] = None,
    faults: Annotated[Path | None, _flag("Start with the faults of this JSON file.")] = None,
    latency: Annotated[
        str | None,
        _flag("Delay responses of the data plane, log-normal by median and 99th percentile, such as p50=4ms,p99=10ms."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Emulate Azure Cosmos DB for NoSQL in memory, with request units and 429s. It is not the service.

    Example: hotplate cosmos-emulator --port 8081 --key-file account.key
    """
    from hotplate.bench.cosmos_emulator.auth import WELL_KNOWN_KEY
    from hotplate.bench.cosmos_emulator.http import EmulatorMisused
    from hotplate.bench.cosmos_emulator.server import EmulatorSettings, serve
    from hotplate.bench.errors import BenchMisused

    logging.getLogger("hotplate.bench.cosmos_emulator").addHandler(logging.StreamHandler())
    key = WELL_KNOWN_KEY if key_file is None else key_file.read_text().strip()
    settings = EmulatorSettings(
        host, port, second_region, key, key_file, consistency, charges, tls, certificate, faults, latency
    )
    try:
        serve(settings, lambda emulator: _print_ready(emulator, settings, as_json=as_json))
    except EmulatorMisused as error:
        raise BenchMisused(str(error)) from error


def _print_ready(emulator: "RunningEmulator", settings: "EmulatorSettings", *, as_json: bool) -> None:
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
