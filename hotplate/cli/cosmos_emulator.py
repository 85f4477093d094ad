"""`hotplate cosmos-emulator`: a local Cosmos DB for NoSQL that counts request units and throttles."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import orjson

from hotplate.cli.terminal import Json, out
from hotplate.stores.options import Flag

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
    latency: Annotated[
        str | None,
        _flag("Delay responses of the data plane, log-normal by median and 99th percentile, such as p50=4ms,p99=10ms."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Emulate Azure Cosmos DB for NoSQL in memory, with request units and 429s. It is not the service.

    Example: hotplate cosmos-emulator --port 8081 --key-file account.key
    """
    import uvloop

    from hotplate.bench.cosmos_emulator.server import EmulatorSettings, RunningEmulator, serve
    from hotplate.bench.cosmos_emulator.service import WELL_KNOWN_KEY

    def print_ready(emulator: RunningEmulator) -> None:
        endpoint = emulator.endpoint
        if as_json:
            sys.stdout.write(orjson.dumps({"endpoint": endpoint, "ports": emulator.ports}).decode() + "\n")
            sys.stdout.flush()
            return
        out.print(f"emulating Cosmos DB for NoSQL on {endpoint} (an emulation, in memory; not Azure)")
        out.print(f"store: cosmos+{endpoint}DATABASE, key: {key_file or WELL_KNOWN_KEY + ' (published, not a secret)'}")
        out.print(f"metrics: {endpoint}__emulation/metrics, faults: {endpoint}__emulation/faults")

    logging.getLogger("hotplate.bench.cosmos_emulator").addHandler(logging.StreamHandler())
    key = WELL_KNOWN_KEY if key_file is None else key_file.read_text().strip()
    settings = EmulatorSettings(host, port, second_region, key, consistency, charges, tls, certificate, latency)
    uvloop.run(serve(settings, print_ready))
