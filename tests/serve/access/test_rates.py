"""The rate of a client holds over all workers together, however unevenly its requests reach them."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hotplate.serve.access.auth import Guard
from hotplate.serve.access.keys import MAX_CLIENTS, Client, create
from hotplate.serve.access.rates import SharedRates
from hotplate.serve.api.problems import Problem
from tests.support.service import a_list, publish_lists, running

RATE = 200.0
SECONDS = 2.5


def client(name: str, rate: float | None = RATE) -> Client:
    return Client(name, ("read",), rate)


class Counted:
    """What some callers got together, counted from when the client's first burst was used up."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._started: float | None = None
        self.admitted = self.refused = 0

    def start(self) -> None:
        with self._lock:
            self._started = time.monotonic()
            assert self.refused, "no caller was ever refused"
            self.admitted = 0

    def add(self, *, admitted: bool) -> None:
        with self._lock:
            self.admitted += admitted
            self.refused += not admitted

    def share(self) -> float:
        """Return what was admitted as a share of what the rate allows."""
        assert self._started is not None
        return self.admitted / (self._rate * (time.monotonic() - self._started))


def send_all(port: int, key: str, pause_s: float, count: Counted, stop: threading.Event) -> None:
    request = b"GET /v1/recommendations/42 HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\n\r\n" % key.encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        while not stop.is_set():
            connection.sendall(request)
            received = connection.recv(65536)
            admitted = received.startswith(b"HTTP/1.1 200 ")
            assert admitted or received.startswith(b"HTTP/1.1 429 ")
            count.add(admitted=admitted)
            time.sleep(pause_s)


@pytest.mark.alone  # what is admitted is compared with the time that passes
def test_a_rate_holds_over_four_workers_and_uneven_connections_within_a_twentieth(tmp_path: Path) -> None:
    asyncio.run(publish_lists(tmp_path / "store", {"user:42": a_list("a", "b")}))
    keys = tmp_path / "keys.json"
    key = create(keys, "web", ["read"], RATE).key
    count, stop = Counted(RATE), threading.Event()
    with running(tmp_path / "store", "--keys", str(keys), "--workers", "4") as service:
        threads = [
            threading.Thread(target=send_all, args=(service.port, key, pause_s, count, stop))
            for pause_s in (0.0, 0.001, 0.01, 0.01, 0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.0)  # in which the first burst is used up
        count.start()
        time.sleep(SECONDS)
        share = count.share()
        stop.set()
        for thread in threads:
            thread.join()
    assert share == pytest.approx(1.0, abs=0.05)


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.alone  # as above
def test_a_rate_holds_over_processes_that_take_as_fast_as_they_can() -> None:
    """One hardly ever, one now and then, two without a pause: as workers with few and many connections do."""
    shared, rate, seconds = SharedRates(4), 5_000.0, 1.5
    reading, writing = os.pipe()
    start = time.monotonic() + 0.2

    def take(pause_s: float) -> None:
        bucket = shared.buckets([client("web", rate)])["web"]
        while time.monotonic() < start:
            time.sleep(0.001)
        admitted = 0
        while (now := time.monotonic()) < start + seconds:
            admitted += bucket.take() == 0.0
            if pause_s:
                time.sleep(pause_s)
            elif now % 0.004 < 0.002:
                time.sleep(0.0005)
        os.write(writing, admitted.to_bytes(8))

    pids = [forked(partial(take, pause_s)) for pause_s in (0.0, 0.0, 0.005, 0.05)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    admitted = sum(int.from_bytes(os.read(reading, 8)) for _ in pids)
    os.close(reading)
    os.close(writing)
    assert admitted == pytest.approx(rate * (1 + seconds), rel=0.05)


def test_tokens_that_a_quiet_worker_holds_cost_the_others_next_to_nothing() -> None:
    shared = SharedRates(4)
    buckets = [shared.buckets([client("web", 10_000.0)])["web"] for _ in range(4)]
    assert all(bucket.take() == 0.0 for bucket in buckets[1:])
    admitted = 0
    while buckets[0].take() == 0.0:
        admitted += 1
        assert admitted < 100_000
    assert admitted >= 9_500


@pytest.mark.parametrize("rate", [0.5, RATE])
def test_a_worker_that_is_killed_while_it_holds_the_lock_blocks_nobody(rate: float) -> None:
    shared = SharedRates(2)
    bucket = shared.buckets([client("web", rate)])["web"]
    locked, locking = os.pipe()

    def hold() -> None:
        assert shared.try_lock(0)
        os.write(locking, b"x")
        time.sleep(60)

    pid = forked(hold)
    os.read(locked, 1)
    assert not shared.try_lock(0)
    assert bucket.take() == 0.0  # on credit
    for _ in range(100):
        bucket.take()
    assert bucket.take() > 0
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert bucket.take() == 0.0
    os.close(locked)
    os.close(locking)


def test_each_client_has_its_own_bucket_and_workers_agree_on_it_in_whatever_order_they_load() -> None:
    shared = SharedRates(1)
    clients = [client(f"c{n}", 1.0) for n in range(50)]
    first, second = shared.buckets(clients), shared.buckets(reversed(clients))
    for each in clients:
        assert first[each.name].take() == 0.0
        assert second[each.name].take() > 0.0


def test_a_client_without_a_rate_has_no_bucket() -> None:
    assert SharedRates(1).buckets([client("free", None)]) == {}


def test_new_clients_get_the_places_of_those_that_are_gone() -> None:
    shared = SharedRates(1)
    for generation in range(3):
        clients = [client(f"{generation}-{n}", 1.0) for n in range(MAX_CLIENTS)]
        buckets = shared.buckets(clients)
        assert all(buckets[each.name].take() == 0.0 for each in clients)
        again = shared.buckets(clients)
        assert all(again[each.name].take() > 0.0 for each in clients)


async def test_a_refusal_says_when_to_come_again(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = create(keys, "slow", ["read"], 0.25).key
    guard = Guard(keys, anonymous=frozenset())
    assert (await guard.admit({"X-API-Key": key}, "read")).name == "slow"
    with pytest.raises(Problem) as caught:
        await guard.admit({"X-API-Key": key}, "read")
    assert (caught.value.status, caught.value.name) == (429, "rate-limited")
    assert 1 <= int(caught.value.headers["Retry-After"]) <= 4


async def test_both_keys_of_a_client_share_its_rate(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    primary, secondary = (create(keys, "slow", scopes, rate).key for scopes, rate in ((["read"], 0.1), ([], None)))
    guard = Guard(keys, anonymous=frozenset())
    await guard.admit({"X-API-Key": primary}, "read")
    with pytest.raises(Problem, match="all the requests"):
        await guard.admit({"X-API-Key": secondary}, "read")
