"""A real service in separate processes, and a minimal client."""

import asyncio
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from hotplate.base.recommendations import Item
from hotplate.stores.connect import connect
from hotplate.stores.encoding import OFFSET_BYTES, encode
from hotplate.stores.publication import LIVE, publish_release
from hotplate.stores.store import Plan, Row, Store
from tests.support.forked import Forked
from tests.support.stores import as_bodies, record_of

# For a process that a test starts in a special way; otherwise one is forked, which is cheaper.
LAUNCHER = (sys.executable, "-m", "hotplate", "serve")
# What options can override: any free ports, a stop without a delay, and each answer out of a store.
DEFAULTS = ("--port", "0", "--admin-port", "0", "--health-port", "0", "--drain-delay", "0", "--cache-mb", "0")
UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
UNVERIFIED.check_hostname = False
UNVERIFIED.verify_mode = ssl.CERT_NONE
SECURE = partial(http.client.HTTPSConnection, context=UNVERIFIED)
# How long a test waits for a condition: longer than the 30 s for which a sentinel that was suspended does nothing.
UNTIL_S = 60.0


def until(condition: Callable[[], object], failure: str = "the condition did not hold") -> None:
    """Wait until a condition holds; *failure* is the message if it does not in time.

    A condition that takes long, such as one that reads all metrics, is checked less often.
    """
    deadline = time.monotonic() + UNTIL_S
    began = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now < deadline, f"in {UNTIL_S:.0f} s, {failure}"
        time.sleep(min(0.2, max(0.02, 10 * (now - began))))
        began = time.monotonic()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second if it ends between open and read
        return False


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 -- JSON is whatever it is
        return json.loads(self.body)

    @property
    def problem(self) -> tuple[int, str]:
        """Return the status and the kind of a problem document."""
        return self.status, self.json["type"].removeprefix("urn:hotplate:problem:")


def ids(answer: Any) -> list[str]:  # noqa: ANN401 -- see below
    """Return the ids of the items in an answer of the service, a client or the library, or in a result of a batch."""
    if isinstance(answer, Answer):
        assert answer.status == 200, answer.body
        answer = answer.json
    return [item["id"] for item in (answer["items"] if isinstance(answer, dict) else answer.items)]


def status_of(port: int, path: str, method: str = "GET", *, timeout_s: float = UNTIL_S) -> int:
    """Return the status of an answer over a new connection; 0 if it is cut, refused or late."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@dataclass(slots=True)
class Service:
    process: subprocess.Popen[bytes] | Forked
    port: int
    admin_port: int
    health_port: int
    log: Path
    tls: bool

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def workers(self) -> list[int]:
        """Return the processes of the workers, once all processes have the names that they take after they start."""
        parent_name = _name_of(self.process.pid)
        until(lambda: all(_name_of(pid) != parent_name for pid in self.processes()), "a process has no name")
        return [pid for pid in self.processes() if "worker" in _name_of(pid)]

    def processes(self) -> list[int]:
        """Return the processes of the workers and the admin process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def kill(self) -> None:
        """Kill all processes at once: workers outlive the process that started them by some time."""
        pids = self.processes()
        self.process.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        return self._request(self.port, method, path, body, headers)

    def admin(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Request something of the admin listener."""
        return self._request(self.admin_port, method, path, None, headers)

    def health(self, path: str) -> Answer:
        """Request something of the health listener."""
        return self._request(self.health_port, "GET", path, None, {})

    @property
    def status(self) -> str:
        """Return what a worker says of its readiness: ready, degraded or another word."""
        return str(self.get("/readyz").json["status"])

    def until_states(self, status: str, workers: int) -> None:
        """Wait until this many workers, and no others, have a status."""
        until(lambda: [state["status"] for state in self.states()] == [status] * workers, f"they are not {status}")

    def states(self) -> list[Any]:
        """Return what each worker says of itself."""
        states: list[Any] = self.admin("/readyz").json["workers"]
        return states

    def _request(self, port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        is_secure = self.tls and port == self.port
        connection = (SECURE if is_secure else http.client.HTTPConnection)("127.0.0.1", port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Send *body*, as JSON unless it is bytes."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, sent, **headers)

    def is_ready(self) -> bool:
        """Whether a worker says that it is ready; False, too, while the connection is cut or refused."""
        return status_of(self.port, "/readyz") == 200

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def running(folder: Path, *options: str, launcher: Sequence[str] = (), before: str = "") -> Iterator[Service]:
    """Run `hotplate serve` on the store in *folder* and any free port, until the block ends."""
    store = ("--store", f"file://{folder}")
    with serving(folder.parent, *store, *options, launcher=launcher, before=before) as service:
        yield service


@contextmanager
def serving(logs: Path, *options: str, launcher: Sequence[str] = (), before: str = "") -> Iterator[Service]:
    """Run `hotplate serve` with *options* on any free port, until the block ends; its log goes to the folder *logs*.

    Without a *launcher*, the process is forked, and first executes the Python source *before*.
    """
    command = [*(launcher or ["serve"]), *DEFAULTS, *options]
    with started(logs, command, forked=not launcher, before=before) as service:
        yield service


@contextmanager
def started(logs: Path, command: Sequence[str], *, forked: bool = False, before: str = "") -> Iterator[Service]:
    """Run a command that serves, and says where, until the block ends; its log goes to the folder *logs*."""
    log = logs / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as stream:
        process = (
            Forked(*command, output=log, before=before)
            if forked
            else subprocess.Popen(command, stderr=stream, stdout=subprocess.DEVNULL)
        )
    try:
        ports = _ports(process, log)
        yield Service(process, *ports, log, tls=re.search(rf"https://[^ ]+:{ports[0]},", log.read_text()) is not None)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:  # it has just ended
        return ""


def _ports(process: subprocess.Popen[bytes] | Forked, log: Path) -> tuple[int, int, int]:
    url = r"https?://[][0-9.:]+:(\d+)"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if match := re.search(rf"serving .* on {url}, and for operators on {url}; .* on {url}", log.read_text()):
            return int(match[1]), int(match[2]), int(match[3])
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    raise AssertionError(f"the service did not come up: {log.read_text()}")


@asynccontextmanager
async def running_app(app: web.Application) -> AsyncIterator[str]:
    """Run an application on any free port of loopback; yield its URL. A client that hangs up cancels its request."""
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def a_list(*ids: str) -> bytes:
    items = [Item(id=name, score=1 / (rank + 1), title=f"Title {name}") for rank, name in enumerate(ids)]
    return encode(items)[OFFSET_BYTES:]


def refused_by(*gates: str) -> dict[str, Any]:
    """Return what the manifest says of a release that *gates* refused."""
    verdict = {"measured": 0.1, "bound": 0.2, "at_most": False, "passed": False, "note": ""}
    return {"gates": {"forced": False, "verdicts": [{"gate": gate} | verdict for gate in gates]}}


async def publish_lists(
    folder: Path, lists: dict[str, bytes], *, live: bool = True, about: Mapping[str, Any] | None = None
) -> str:
    """Publish *lists* by key into the store in *folder*, and return the release."""
    return await publish_through(connect(f"file://{folder}"), lists, live=live, about=about)


def published(
    store: Path | str, lists: dict[str, bytes], *, live: bool = True, about: Mapping[str, Any] | None = None
) -> str:
    """Publish *lists* by key into the store in a folder, or at a URL, where no event loop runs; return the release."""
    if isinstance(store, Path):
        return asyncio.run(publish_lists(store, lists, live=live, about=about))
    return asyncio.run(publish_to(store, lists, live=live, about=about))


async def publish_to(
    url: str, lists: dict[str, bytes], *, live: bool = True, about: Mapping[str, Any] | None = None
) -> str:
    """Publish *lists* by key, with a popular list unless there is one, and return the release."""
    from tests.support import patience  # noqa: PLC0415 -- which imports this module

    with pytest.MonkeyPatch.context() as patch:
        patience.install(patch.setattr)
        return await publish_through(connect(url), lists, live=live, about=about)


async def publish_through(
    store: Store, lists: dict[str, bytes], *, live: bool = True, about: Mapping[str, Any] | None = None
) -> str:
    """Publish as `publish_to` does, through a store that is closed at the end."""
    lists = {"popular:": a_list("p1", "p2", "p3"), **lists}
    rows = [Row(key, lists[key]) for key in sorted(lists, key=str.encode)]

    async def batches() -> AsyncIterator[Sequence[Row]]:
        yield as_bodies(rows)

    plan = Plan(len(rows), 10_000)
    try:
        activation = LIVE if live else None
        written = await publish_release(
            store, batches(), plan=plan, about=record_of(about or {}), activation=activation
        )
        return written.manifest.release
    finally:
        await store.close()
