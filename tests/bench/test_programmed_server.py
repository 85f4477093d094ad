"""The command against a server that is programmed to be slow, and that logs how long each of its answers took."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hotplate.report import Report, from_json

# What other processes of the machine do would be measured, too.
FIRST = ("chrt", "--rr", "1") if os.geteuid() == 0 and shutil.which("chrt") else ()

SERVER = """
import asyncio, json, signal, sys
programme, log = sys.argv[1:]
body = b'{"user":"1","release":"r1","source":"personal","items":[]}'
answer = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body)
taken = []

def ends_at(now):
    if programme == "constant":
        return now + 0.005
    return max(now + 0.005, began + now_stalled(now))

def now_stalled(now):
    since = (now - began) % 12
    return now - began - since + 0.3 if since < 0.3 else 0.0

class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        now = loop.time()
        loop.call_at(ends_at(now), self.write, now)

    def write(self, received_at):
        self.transport.write(answer)
        taken.append(loop.time() - received_at)

async def main():
    global loop, began
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    began = loop.time()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    with open(log, "w") as out:
        json.dump(taken, out)

asyncio.run(main())
"""


@contextmanager
def programmed(programme: str, log: Path) -> Iterator[str]:
    """Run a server; once the block has ended, *log* holds the seconds that each answer took, from first to last."""
    command = [*FIRST, sys.executable, "-c", SERVER, programme, log]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def measured(url: str, folder: Path, *arguments: str) -> Report:
    options = ("--users", "100", "--warmup", "0s", "--out", str(folder / "report"), *arguments)
    command = [*FIRST, sys.executable, "-m", "hotplate", "bench", "http", url, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return from_json(json.loads((folder / "report.json").read_text()))


@pytest.mark.alone  # it judges times
@pytest.mark.soak
@pytest.mark.parametrize(("programme", "seconds"), [("constant", 6), ("stall", 24)])
def test_percentiles_are_within_a_tenth_of_those_that_the_server_logs(
    programme: str, seconds: int, tmp_path: Path
) -> None:
    log = tmp_path / "log.json"
    with programmed(programme, log) as url:
        report = measured(
            url, tmp_path, "--rate", "500", "--duration", f"{seconds}s", "--connections", "256", "--slo", "errors=0.1%"
        )
    truth_us = 1e6 * np.array(json.loads(log.read_text()))
    assert len(truth_us) >= 500 * seconds
    for name, percent in (("p50", 50), ("p99", 99)):
        row = report.row(url, name)
        assert row is not None
        assert row.value == pytest.approx(np.percentile(truth_us, percent), rel=0.1)
