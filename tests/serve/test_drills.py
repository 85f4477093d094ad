"""Faults on real stores behind a real service under load: every request is answered, and operators see the fault."""

import asyncio
import itertools
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from prometheus_client.parser import text_string_to_metric_families

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreFull
from hotplate.stores.store import Store
from hotplate.stores.transfer import copy, repair
from tests.support.redis_server import RedisServer, copied, put_back
from tests.support.redis_server import running as redis_running
from tests.support.service import Service, a_list, publish_to, serving, until
from tests.support.small_disk import small_disk
from tests.support.tcp_proxy import Proxy, through

pytestmark = pytest.mark.soak

USERS = 50
DAMAGED = range(0, USERS, 10)
BUDGET_S = 0.05
CALLERS = 4
PAUSE_S = 0.02
FAULT_S = 1.0
DISK_BYTES = 4_000_000
PREFIX = "test"
REDIS, FILE = "redis", "file"

# Metrics that rise: a name, and labels.
DEGRADED = ("hotplate_degraded", "")
UNREAD = ("hotplate_lookups_total", 'outcome="error"')
CIRCUIT_OPEN = ("hotplate_breaker_open", "")
FAILED_READS = ("hotplate_store_operation_duration_seconds_count", 'outcome="error"')
DAMAGED_LISTS = ("hotplate_store_corrupt_total", "")
OUTAGE = FAILED_READS, CIRCUIT_OPEN, DEGRADED


@dataclass(frozen=True, slots=True)
class Instance:
    """A disturbed tier with two releases of which the newer is live, and a store that holds the same."""

    tier: str
    url: str
    source: str
    older: str
    newer: str
    service: Service
    proxy: Proxy | None = None
    redis: RedisServer | None = None
    snapshot: dict[bytes, bytes] | None = None

    def metric(self, name: str, labels: str) -> float:
        """Return the sum of a metric's samples with these labels."""
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', labels)).items()
        families = text_string_to_metric_families(self.service.admin("/metrics").body.decode())
        samples = (sample for family in families for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == name and wanted <= sample.labels.items())

    def is_well(self) -> bool:
        """Whether the disturbed tier answers everybody out of the newer release, and nothing is degraded."""
        answers = (self.service.get(f"/v1/recommendations/{user}").json for user in range(USERS))
        expected = ("personal", self.tier, self.newer)
        all_own = all((each["source"], each["tier"], each["release"]) == expected for each in answers)
        return all_own and bool(self.service.admin("/readyz").json["status"] == "ready")


Fault = Callable[[Instance], AbstractAsyncContextManager[None]]


class Callers:
    """Threads that request users' lists until the block ends, and keep what was answered."""

    def __init__(self, service: Service) -> None:
        self.answers: list[tuple[int, int, dict[str, Any]]] = []
        self._service = service
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CALLERS)]

    def _run(self, first: int) -> None:
        for user in itertools.cycle(range(first, USERS, CALLERS)):
            if self._over.wait(PAUSE_S):
                return
            try:
                answer = self._service.get(f"/v1/recommendations/{user}")
                self.answers.append((user, answer.status, answer.json))
            except (OSError, ValueError) as error:
                self.answers.append((user, 0, {"error": repr(error)}))

    @contextmanager
    def calling(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def wrong(self) -> list[object]:
        """Return what is neither a published list of the user nor the popular one."""
        return [
            (user, status, answer)
            for user, status, answer in self.answers
            if status != 200
            or answer["items"][0]["id"] not in {"p1", f"older-{user}", f"newer-{user}"}
            or (answer["source"] == "personal") != (answer["items"][0]["id"] != "p1")
        ]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = connect(url)
    try:
        yield store
    finally:
        await store.close()


async def published(source: str, target: str, mark: str) -> str:
    """Publish a release into one store and copy it into another, so that both hold the same."""
    release = await publish_to(source, {f"user:{user}": a_list(f"{mark}-{user}", "b") for user in range(USERS)})
    async with opened(source) as store, opened(target) as other:
        await copy(store, other, ReleaseId(release))
    return release


@asynccontextmanager
async def started(folder: Path, kind: str, *, alone: bool = False, disk: Path | None = None) -> AsyncIterator[Instance]:
    """Run a service over a tier of a kind, and over a second one in files unless it is *alone*."""
    source, second = f"file://{folder}/source", f"file://{folder}/second"
    async with AsyncExitStack() as stack:
        found: dict[str, Any] = {}
        if kind == REDIS:
            (folder / "redis").mkdir()
            durable = ("--appendonly", "yes", "--appendfsync", "always")
            found["redis"] = server = stack.enter_context(redis_running(folder / "redis", *durable))
            url, port = server.url(prefix=PREFIX), server.port
        else:
            url, port = f"file://{disk or folder / 'first'}", 0
        older = await published(source, url, "older")
        if kind == REDIS:
            with redis_py.Redis(port=port) as client:
                found["snapshot"] = copied(client, PREFIX)
        newer = await published(source, url, "newer")
        read = url
        if port:
            found["proxy"] = proxy = await stack.enter_async_context(through(port))
            read = url.replace(str(port), str(proxy.port))
        stores = [read] if alone else [read, second]
        if not alone:
            async with opened(source) as store, opened(second) as other:
                await copy(store, other, ReleaseId(newer))
        options = [word for each in stores for word in ("--store", each)]
        manager = serving(folder, "--workers", "1", "--budget", str(BUDGET_S), *options)
        service = await asyncio.to_thread(manager.__enter__)  # it reads through a proxy of this loop
        try:
            yield Instance(kind, url, source, older, newer, service, **found)
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)


@asynccontextmanager
async def cut(instance: Instance) -> AsyncIterator[None]:
    assert instance.proxy is not None
    instance.proxy.cut_at = 3
    yield
    instance.proxy.cut_at = None


@asynccontextmanager
async def reads_refused(instance: Instance) -> AsyncIterator[None]:
    assert instance.redis is not None
    instance.redis.execute_command("ACL", "SETUSER", "default", "-@read")
    yield
    instance.redis.execute_command("ACL", "SETUSER", "default", "+@all")


@asynccontextmanager
async def killed(instance: Instance) -> AsyncIterator[None]:
    assert instance.redis is not None
    instance.redis.kill()
    yield
    await asyncio.to_thread(instance.redis.start)


@asynccontextmanager
async def old_snapshot(instance: Instance) -> AsyncIterator[None]:
    assert instance.redis is not None
    assert instance.snapshot is not None
    with redis_py.Redis(port=instance.redis.port) as client:
        put_back(client, PREFIX, instance.snapshot)
    yield
    async with opened(instance.source) as source, opened(instance.url) as store:
        await copy(source, store, ReleaseId(instance.newer))


@asynccontextmanager
async def damaged(instance: Instance) -> AsyncIterator[None]:
    """Flip the last byte of every tenth list; at the end, repair the release from the other store."""
    if instance.redis is not None:
        with redis_py.Redis(port=instance.redis.port) as client:
            for name in (name for user in DAMAGED for name in client.keys(f"*:user:{user}")):
                client.setrange(name, client.strlen(name) - 1, b"\x00")
    else:
        await damage_file(instance)
    yield
    async with opened(instance.source) as source, opened(instance.url) as store:
        await repair(store, source, ReleaseId(instance.newer))


async def damage_file(instance: Instance) -> None:
    """Change values in a release's file in place, while the service has it mapped."""
    async with opened(instance.url) as store:
        live = (await store.catalogue()).find(ReleaseId(instance.newer)).ref
        values = await store.get_many(live, [f"user:{user}" for user in DAMAGED])
    path = Path(instance.url.removeprefix("file://")) / "releases" / f"{live.incarnation}.mdb"
    content = path.read_bytes()
    with path.open("r+b") as file:
        for value in values:
            assert isinstance(value, bytes)
            file.seek(content.index(value) + len(value) - 1)
            file.write(b"\x00")


@asynccontextmanager
async def full_disk(instance: Instance) -> AsyncIterator[None]:
    """Leave no page free, so that a publish fails; afterwards publishing works again."""
    filler = Path(instance.url.removeprefix("file://")) / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreFull):
        await publish_to(instance.url, {"user:1": a_list("never", *map(str, range(1000)))})
    yield
    filler.unlink()


@dataclass(frozen=True, slots=True)
class Drill:
    kind: str
    fault: Fault
    rises: tuple[tuple[str, str], ...]
    alone: bool = False
    own: float = 0.9
    """The share of answers during the fault that are users' own lists, at least."""


DRILLS = {
    "redis refuses reads": Drill(REDIS, reads_refused, OUTAGE),
    "redis's answers are cut": Drill(REDIS, cut, OUTAGE),
    "redis is killed": Drill(REDIS, killed, OUTAGE),
    "redis, alone, is killed": Drill(REDIS, killed, (*OUTAGE, UNREAD), alone=True, own=0.0),
    "redis gets an old snapshot": Drill(REDIS, old_snapshot, (("hotplate_release_info", 'release="OLDER"'),)),
    "redis's lists are damaged": Drill(REDIS, damaged, (DAMAGED_LISTS, DEGRADED)),
    "files are damaged": Drill(FILE, damaged, (DAMAGED_LISTS, UNREAD), alone=True, own=0.7),
}


async def has_risen(instance: Instance, metrics: tuple[tuple[str, str], ...], before: list[float]) -> None:
    def all_higher() -> bool:
        return all(instance.metric(*each) > value for each, value in zip(metrics, before, strict=True))

    await asyncio.to_thread(until, all_higher, f"not all of these rise: {metrics}")


async def disturb(instance: Instance, drill: Drill) -> tuple[Callers, int, int]:
    """Make the fault while callers call; return them, and how many had been answered before it and during it."""
    metrics = tuple((name, labels.replace("OLDER", instance.older)) for name, labels in drill.rises)
    await asyncio.to_thread(until, instance.is_well, "the service is not well before the fault")
    before = await asyncio.to_thread(lambda: [instance.metric(*each) for each in metrics])
    callers = Callers(instance.service)
    async with in_background(callers):
        async with drill.fault(instance):
            began = len(callers.answers) + CALLERS  # some that were sent before the fault
            await has_risen(instance, metrics, before)
            await asyncio.sleep(FAULT_S)
            assert await asyncio.to_thread(instance.service.is_ready)
            ended = len(callers.answers)
        await asyncio.to_thread(until, instance.is_well, "the service is not well after the fault")
    return callers, began, ended


@asynccontextmanager
async def in_background(callers: Callers) -> AsyncIterator[None]:
    manager = callers.calling()
    manager.__enter__()
    try:
        yield
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


@pytest.mark.parametrize("name", DRILLS)
async def test_faults_lose_no_request_and_are_seen_on_metrics(tmp_path: Path, name: str) -> None:
    drill = DRILLS[name]
    async with started(tmp_path, drill.kind, alone=drill.alone) as instance:
        callers, began, ended = await disturb(instance, drill)
    assert callers.wrong() == []
    during = [answer for _, _, answer in callers.answers[began:ended]]
    own = sum(answer["source"] == "personal" for answer in during)
    assert during
    assert own >= drill.own * len(during), f"{own} of {len(during)} got their own list"


async def test_a_full_disk_fails_a_publish_and_no_lookup(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        async with started(tmp_path, FILE, alone=True, disk=disk) as instance:
            callers, _, _ = await disturb(instance, Drill(FILE, full_disk, ()))
            assert await publish_to(instance.url, {"user:1": a_list("again")})
    assert callers.wrong() == []
    assert {answer["source"] for _, _, answer in callers.answers} == {"personal"}
