"""What workers share of a client: its rate, however unevenly its requests reach them, and when its key was used."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hotplate.serve.access.auth import Guard
from hotplate.serve.access.keys import MAX_CLIENTS, KeyHolder, create
from hotplate.serve.access.rates import USES, LastUses, SharedRates
from hotplate.serve.problems import Problem
from tests.support.service import running, until

RATE = 200.0


def client(name: str, rate: float | None = RATE) -> KeyHolder:
    return KeyHolder(name, ("read",), rate)


def test_a_rate_is_one_for_all_workers_of_a_service(folder: Path) -> None:
    keys = folder.parent / "keys.json"
    key = create(keys, "web", ["read"], 0.01).key
    with running(folder, "--keys", str(keys), "--workers", "4") as service:
        until(lambda: [state["status"] for state in service.states()] == ["ready"] * 4, "they are not ready")
        statuses = Counter(service.get("/v1/popular", X_API_Key=key).status for _ in range(40))
    assert statuses == {200: 1, 429: 39}


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


@pytest.mark.alone  # what is admitted is compared with the time that passes
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


def test_a_client_with_a_new_rate_begins_with_a_full_bucket() -> None:
    shared = SharedRates(1)
    slow = shared.buckets([client("c", 0.02)])["c"]
    assert slow.take() == 0.0
    assert slow.take() > 0.0
    assert shared.buckets([client("c", 1000.0)])["c"].take() == 0.0


def test_new_clients_get_the_places_of_those_that_are_gone() -> None:
    shared = SharedRates(1)
    for generation in range(3):
        clients = [client(f"{generation}-{n}", 1.0) for n in range(MAX_CLIENTS)]
        buckets = shared.buckets(clients)
        assert all(buckets[each.name].take() == 0.0 for each in clients)
        again = shared.buckets(clients)
        assert all(again[each.name].take() > 0.0 for each in clients)


async def test_both_keys_of_a_client_share_its_rate(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    primary, secondary = (create(keys, "slow", scopes, rate).key for scopes, rate in ((["read"], 0.1), ([], None)))
    guard = Guard(keys, anonymous=frozenset())
    await guard.admit({"X-API-Key": primary}, "read")
    with pytest.raises(Problem, match="all the requests"):
        await guard.admit({"X-API-Key": secondary}, "read")


def test_what_one_process_records_all_others_see() -> None:
    shared = LastUses()
    assert shared.of("web") is None

    def record() -> None:
        shared.marked.add("web")
        shared.record()

    os.waitpid(forked(record), 0)
    found = shared.of("web")
    assert found is not None
    assert abs(time.time() - found) < 60
    assert shared.of("batch") is None


def test_a_full_table_forgets_nobody_and_takes_nobody_in() -> None:
    shared = LastUses()
    names = [f"client-{number}" for number in range(USES)]
    shared.marked.update(names)
    shared.record()
    assert all(shared.of(name) for name in names)
    assert shared.marked == set()
    shared.marked.add("one too many")
    shared.record()
    assert shared.of("one too many") is None
    assert shared.of(names[0])
