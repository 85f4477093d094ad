"""A Prometheus for the tests: one that answers range queries as is documented, and the real one where it is."""

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from aiohttp import BasicAuth, web

from tests.support.kubernetes import tool
from tests.support.service import running_app

# Of the time of a step the value of a curve, as Prometheus writes it; None where it has none.
Curve = Callable[[int], str | None]


@dataclass(slots=True)
class PlayedPrometheus:
    """What is answered to a range query, and what was requested."""

    curves: Mapping[str, Curve] = field(default_factory=dict)
    status: int = 200
    body: str | None = None
    """What is answered instead of the curves."""

    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    password: str | None = None
    """Without it 401 is answered."""

    url: str = ""
    queries: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        while self.hangs:
            await asyncio.sleep(0.02)
        given = request.headers.get("Authorization")
        if self.password is not None and (given is None or BasicAuth.decode(given).password != self.password):
            return web.Response(status=401)
        if self.status != 200 or self.body is not None:
            return web.Response(status=self.status, text=self.body, headers=self.headers)
        start, end, step = (int(request.query[name]) for name in ("start", "end", "step"))
        found = {
            name: [[at, value] for at in range(start, end + 1, step) if (value := curve(at)) is not None]
            for name, curve in self.curves.items()
        }
        series = [{"metric": {"curve": name}, "values": values} for name, values in found.items()]
        return web.json_response({"status": "success", "data": {"resultType": "matrix", "result": series}})


@asynccontextmanager
async def playing() -> AsyncIterator[PlayedPrometheus]:
    """Answer range queries on any free port of loopback, until the block ends."""
    played = PlayedPrometheus()
    app = web.Application()
    app.router.add_get("/prefix/api/v1/query_range", played.answer)
    async with running_app(app) as url:
        played.url = f"{url}/prefix/"
        yield played
        played.hangs = False


@contextmanager
def scraping(folder: Path, ports: Mapping[str, int]) -> Iterator[str]:
    """Run a real Prometheus that scrapes ports of loopback as pods, by their names; skips, or fails, without one."""
    binary = tool("prometheus")
    pods = [{"targets": [f"127.0.0.1:{port}"], "labels": {"pod": pod}} for pod, port in ports.items()]
    job = {"job_name": "hotplate", "scrape_interval": "1s", "static_configs": pods}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    log = folder / "prometheus.log"
    listen, config = "--web.listen-address=127.0.0.1:0", f"--config.file={folder}/prometheus.yaml"
    with log.open("wb") as stream:
        process = subprocess.Popen([binary, listen, config, f"--storage.tsdb.path={folder}/tsdb"], stderr=stream)
    try:
        deadline = time.monotonic() + 60
        while (found := re.search(r"address=(127\.0\.0\.1:[1-9]\d*)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"http://{found[1]}"
    finally:
        process.terminate()
        process.wait(timeout=60)
