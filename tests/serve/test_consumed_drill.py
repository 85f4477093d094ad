"""Two services behind a proxy without routing sell 2,000 items, while both and their Redis are killed.

A second after a purchase was answered, no list of either service may show the item; time in which a process stands
still does not count. Only Redis can tell one service of what the other sold, so that second begins again when Redis is
back; purchases that were answered while it was away wait for a restart of their service, too.
"""

import json
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from hotplate.bench.process import free_port
from tests.support.event_log import ids
from tests.support.redis_server import RedisServer, running
from tests.support.service import Service, a_list, published, serving, status_of, until
from tests.support.soak import SEED, scaled

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not there"),
]

PURCHASES = scaled(2000)
PER_S = 40.0
BUYERS = 4
CHECKERS = 2
GRACE_S = 1.0
# Between two looks at the running processes, and the longest time that counts for one.
LOOK_S = 0.02
MOST_S = 0.1
# Workers of a killed service may hold its port for longer than it waits, if they stand still.
WAITING = "import hotplate.serve.connections.listeners as listeners; listeners.PORT_WAIT_S = 60.0"
ITEMS = [f"i{number}" for number in range(8)]
USERS = PURCHASES // 4
NGINX = """
pid {folder}/nginx.pid; daemon off; worker_processes 1; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream services {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://services; proxy_read_timeout 5s; proxy_connect_timeout 250ms; }}
    }}
}}
"""


@dataclass(frozen=True)
class Purchase:
    id: str
    user: str
    item: str
    answered_at: float


@contextmanager
def unrouted(folder: Path, *ports: int) -> Iterator[int]:
    """Run nginx, which sends each request to the next of the services; yields its port."""
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{of_service} max_fails=0;" for of_service in ports)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers, port=port))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE)
    try:
        until(lambda: status_of(port, "/livez"), "nginx does not answer")
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=60)


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send a request over a new connection; the status is 0 if it is cut or refused."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException):
        return 0, b""
    finally:
        connection.close()


class RunningTime:
    """Counts seconds in which this process, Redis and the admin processes of the services, which share, all run."""

    def __init__(self, server: RedisServer) -> None:
        self.now = 0.0
        self._server = server
        self._services = list[Restarted]()

    @property
    def soon(self) -> float:
        """A time that is not before the present one: the look that goes on is not in `now` yet."""
        return self.now + MOST_S

    def add(self, service: "Restarted") -> None:
        self._services.append(service)

    def wait(self, seconds: float) -> None:
        """Wait until this time has passed."""
        end = self.soon + seconds
        until(lambda: self.now >= end, "a process does not run")

    def run(self, over: threading.Event) -> None:
        """Count until it is over: a look waits for each process, and adds little if one of them stands still."""
        looked_at = time.monotonic()
        while not over.wait(LOOK_S):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._server.port), 60) as connection:
                connection.sendall(b"PING\r\n")
                connection.recv(7)
            for service in self._services:
                if service.running is not None:
                    status_of(service.running.admin_port, "/livez")
            before = looked_at
            looked_at = time.monotonic()
            self.now += min(looked_at - before, MOST_S)


@dataclass
class Restarted:
    """A service on one port, which is killed and started again."""

    folder: Path
    options: tuple[str, ...]
    clock: RunningTime
    port: int = field(default_factory=free_port)
    up_at: float = float("inf")
    running: Service | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        options = (*self.options, "--port", str(self.port), "--workers", "2")
        self.running = self._stack.enter_context(serving(self.folder, *options, before=WAITING))
        until(self.running.is_ready)
        self.up_at = self.clock.soon

    def kill(self) -> None:
        self.up_at = float("inf")
        assert self.running is not None
        self.running.process.kill()
        self.running.process.wait()
        until(lambda: status_of(self.port, "/livez", timeout_s=1) == 0, "the workers of a killed service answer")
        self._stack.close()


class Drill:
    def __init__(self, port: int, services: list[Restarted], server: RedisServer, clock: RunningTime) -> None:
        self.clock = clock
        self.port = port
        self.services = services
        self.server = server
        self.redis_up_at = clock.soon
        self.redis_down_at = float("inf")
        self.purchases = list[Purchase]()
        self.violations = list[str]()
        self.checked = 0
        self.kills = 0
        self.over = threading.Event()
        self._wanted = [(f"u{number % USERS}", ITEMS[number // USERS]) for number in range(PURCHASES)]
        self._lock = threading.Lock()

    @property
    def sold(self) -> int:
        return len(self.purchases)

    def buy(self) -> None:
        """Buy until everything is sold; send each purchase until it is answered."""
        while True:
            with self._lock:
                if not self._wanted:
                    return
                user, item = self._wanted.pop()
            name = f"{user}-{item}"
            body = json.dumps({"events": [{"type": "buy", "user": user, "items": [item], "id": name}]}).encode()
            while request(self.port, "POST", "/v1/events", body)[0] != 200:
                time.sleep(0.02)
            self.purchases.append(Purchase(name, user, item, self.clock.soon))
            time.sleep(BUYERS / PER_S)

    def check(self) -> None:
        """Look for sold items in lists of both services."""
        draw = random.Random(SEED)
        while not self.over.wait(0.01):
            if self.purchases:
                recent = self.purchases[-200:] if draw.random() < 0.7 else self.purchases
                self.look_at(draw.choice(recent))

    def look_at(self, purchase: Purchase) -> None:
        for service in self.services:
            began_at = self.clock.now
            if began_at < self.settled_at(purchase) + GRACE_S:
                continue
            status, body = request(service.port, "GET", f"/v1/recommendations/{purchase.user}?n=8")
            if status != 200:
                continue  # it was killed
            self.checked += 1
            shown = {item["id"] for item in json.loads(body)["items"]}
            if purchase.item in shown and began_at >= self.settled_at(purchase) + GRACE_S:
                late_s = began_at - self.settled_at(purchase)
                self.violations.append(f"{purchase.id} is shown {late_s:.2f} s later by port {service.port}")

    def settled_at(self, purchase: Purchase) -> float:
        """Return when both services could know of a purchase."""
        if self.redis_up_at == float("inf"):
            return float("inf")
        was_away = self.redis_down_at - GRACE_S < purchase.answered_at < self.redis_up_at + GRACE_S
        starts = [service.up_at for service in self.services] if was_away else []
        return max(purchase.answered_at, self.redis_up_at, *starts)

    def kill_services(self) -> None:
        """Kill one service or both, and start them again, until everything is sold."""
        draw = random.Random(SEED + 1)
        while not self.over.wait(draw.uniform(0.5, 2.0)):
            killed = draw.sample(self.services, draw.choice((1, 1, 1, 2)))
            for service in killed:
                service.kill()
                self.kills += 1
            for service in killed:
                service.start()

    def restart_redis(self) -> None:
        self.redis_down_at = self.clock.now
        self.redis_up_at = float("inf")
        self.server.kill()
        time.sleep(1.5)
        self.server.start()
        self.redis_up_at = self.clock.soon


@pytest.mark.parametrize("appends", ["yes", "no"])
def test_no_list_shows_items_bought_through_either_service(
    tmp_path: Path, appends: str, record_property: Callable[[str, object], None]
) -> None:
    lists = {f"user:u{number}": a_list(*ITEMS) for number in range(USERS)}
    published(tmp_path / "store", lists | {"popular:": a_list("p1", "p2")})
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis", "--appendonly", appends) as server, ExitStack() as stack:
        clock = RunningTime(server)
        over = threading.Event()
        counting = threading.Thread(target=clock.run, args=(over,))
        counting.start()
        stack.callback(counting.join)
        stack.callback(over.set)
        services = list[Restarted]()
        for name in ("first", "second"):
            hiding = ("--events", str(tmp_path / name), "--hide-consumed", "buy=24", "--share-consumed", server.url())
            services.append(Restarted(tmp_path, ("--store", f"file://{tmp_path}/store", *hiding), clock))
            clock.add(services[-1])
            services[-1].start()
            stack.callback(services[-1].kill)
        port = stack.enter_context(unrouted(tmp_path, *(service.port for service in services)))
        drill = Drill(port, services, server, clock)
        buyers = [threading.Thread(target=drill.buy) for _ in range(BUYERS)]
        checkers = [threading.Thread(target=drill.check) for _ in range(CHECKERS)]
        checkers.append(threading.Thread(target=drill.kill_services))
        for thread in (*buyers, *checkers):
            thread.start()
        with suppress(AssertionError):
            until(lambda: drill.sold >= PURCHASES // 2)
        drill.restart_redis()
        for thread in buyers:
            thread.join()
        clock.wait(GRACE_S)
        drill.over.set()
        for thread in checkers:
            thread.join()
        clock.wait(2 * GRACE_S)
        checked = drill.checked
        for purchase in drill.purchases:
            drill.look_at(purchase)
        record_property("kills", drill.kills)
        record_property("lists checked", drill.checked)
        assert drill.checked >= checked + 2 * PURCHASES
        assert not drill.violations
        assert {purchase.id for purchase in drill.purchases} <= ids(tmp_path / "first") | ids(tmp_path / "second")
        assert drill.sold == PURCHASES
        assert drill.kills > PURCHASES / PER_S / 10
