"""An emulator for the tests: a process of its own on loopback, and a fast way to ask the service without a network."""

import base64
import hmac
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import orjson

from bench.cosmos_emulator.auth import WELL_KNOWN_KEY

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Emulator:
    endpoint: str
    pid: int
    key: str = WELL_KNOWN_KEY


@contextmanager
def emulator(*options: str) -> Iterator[Emulator]:
    """Start `hotplate cosmos-emulator` on a free port."""
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", "0", "--json", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line, process.stderr.read().decode()
            yield Emulator(orjson.loads(line)["endpoint"], process.pid)
        finally:
            process.terminate()
            process.communicate(timeout=10)


def signed(
    method: str, resource_type: str, link: str, *, now: float | None = None, key: str = WELL_KNOWN_KEY
) -> dict[str, str]:
    """Return the headers that sign a request, written from the documentation and not from the emulator's code."""
    date = formatdate(now, usegmt=True)
    text = f"{method.lower()}\n{resource_type.lower()}\n{link}\n{date.lower()}\n\n"
    signature = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), "sha256")).decode()
    return {"authorization": quote(f"type=master&ver=1.0&sig={signature}", safe=""), "x-ms-date": date}
