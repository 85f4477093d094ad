"""The command against a server that stalls as it is programmed to, and that logs how long each of its answers took."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hotplate.report import from_json

SERVER = """
import asyncio, json, signal, sys
body = b'{"user":"1","release":"r1","source":"personal","items":[]}'
answer = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body)
taken = []

class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        now = loop.time()
        since = (now - began) % 12  # nothing is answered in the first 0.3 s of each 12
        loop.call_at(now + max(0.005, 0.3 - since), self.write, now)

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
    print(json.dumps(taken))

asyncio.run(main())
"""


@pytest.mark.alone  # it judges times
@pytest.mark.soak
def test_percentiles_are_within_a_tenth_of_those_that_the_server_logs(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        command = [sys.executable, "-m", "hotplate", "bench", "http", url, "--users", "100", "--warmup", "0s"]
        command += ["--rate", "500", "--duration", "12s", "--connections", "256", "--slo", "errors=0.1%", "--out"]
        done = subprocess.run([*command, str(tmp_path / "found")], capture_output=True, text=True, check=False)
        server.terminate()
        truth_us = 1e6 * np.array(json.loads(server.stdout.read()))
    assert done.returncode == 0, done.stdout + done.stderr
    report = from_json(json.loads((tmp_path / "found.json").read_text()))
    assert len(truth_us) >= 500 * 12
    for name, percent in (("p50", 50), ("p99", 99)):
        row = report.row(url, name)
        assert row is not None
        assert row.value == pytest.approx(np.percentile(truth_us, percent), rel=0.1)
