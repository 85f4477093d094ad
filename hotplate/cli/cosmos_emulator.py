"""`hotplate cosmos-emulator`: a local Cosmos DB for NoSQL that counts request units and throttles."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson

from hotplate.cli.terminal import Json, option, out

if TYPE_CHECKING:
    from bench.cosmos_emulator.server import Running
    from bench.cosmos_emulator.settings import Settings

_option = partial(option, prefix="COSMOS_EMULATOR_")
_port = partial(_option, at_least=0, at_most=65535)


def cosmos_emulator(
    host: Annotated[str, _option("--host", "The address to listen on; by default this machine only.")] = "127.0.0.1",
    port: Annotated[int, _port("--port", "The port; 0 takes any free one.")] = 8081,
    second_region: Annotated[
        int | None, _port("--second-region", "The port of a second region, for reads; 0 takes any free one.")
    ] = None,
    key_file: Annotated[
        Path | None,
        _option("--key-file", "A file of the account's key, base64; by default it is the published key of emulators."),
    ] = None,
    consistency: Annotated[str, _option("--consistency", "The default consistency of the account.")] = "Session",
    burst: Annotated[bool, _option("--burst", "Bank idle throughput for bursts, as accounts can.")] = False,
    tls: Annotated[bool, _option("--tls", "Speak HTTPS, with a certificate that is made at the start.")] = False,
    certificate: Annotated[
        Path | None, _option("--certificate", "With --tls: write the certificate to this file, for clients to trust.")
    ] = None,
    charges: Annotated[
        Path | None, _option("--charges", "Your own RU charges, in the form of our stores/cosmos/charges.toml.")
    ] = None,
    faults: Annotated[Path | None, _option("--faults", "A JSON file of the faults to begin with.")] = None,
    entra_issuer: Annotated[
        bool, _option("--entra-issuer", "Accept test tokens, and give one to whoever asks at /__emulation/token.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Emulate Azure Cosmos DB for NoSQL in memory, with request units and 429s. It is not the service.

    Example: hotplate cosmos-emulator --port 8081 --key-file account.key
    """
    from bench.cosmos_emulator.auth import WELL_KNOWN_KEY
    from bench.cosmos_emulator.server import serve
    from bench.cosmos_emulator.settings import Settings

    logging.getLogger("bench.cosmos_emulator").addHandler(logging.StreamHandler())
    key = WELL_KNOWN_KEY if key_file is None else key_file.read_text().strip()
    settings = Settings(
        host, port, second_region, key, key_file, consistency, burst, charges, tls, certificate, entra_issuer, faults
    )
    serve(settings, lambda running: _print_address(running, settings, as_json=as_json))


def _print_address(running: "Running", settings: "Settings", *, as_json: bool) -> None:
    """Print where it listens and how to connect, or one line of JSON for programs."""
    if as_json:
        sys.stdout.write(orjson.dumps({"endpoint": running.endpoint, "ports": running.ports}).decode() + "\n")
        sys.stdout.flush()
        return
    key = f'open("{settings.key_file}").read().strip()' if settings.key_file else "WELL_KNOWN_KEY"
    out.print(f"emulating Cosmos DB for NoSQL on {running.endpoint} (an emulation, in memory; not Azure)", markup=False)
    if len(running.ports) > 1:
        out.print(f"second region, for reads: port {running.ports[1]}", markup=False)
    if not settings.key_file:
        out.print(
            "from bench.cosmos_emulator.auth import WELL_KNOWN_KEY  # the published key of emulators", markup=False
        )
    out.print(f'client = azure.cosmos.CosmosClient("{running.endpoint}", {key})', markup=False)
    out.print(f"faults, metrics and state: {running.endpoint}__emulation/", markup=False)
