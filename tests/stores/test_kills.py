"""Whoever is killed or stopped at whatever instant of a change to a store: readers see a whole release, and the same
change made again, or the next `prune`, leaves nothing behind."""

import asyncio
import fcntl
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import orjson
import pytest
import redis

from stores import catalogue as changes
from stores import lifecycle as life
from stores.catalogue import Catalogue, ReleaseId, State
from stores.connect import connect
from stores.encoding import OFFSET_BYTES, Checksum
from stores.errors import ReleaseConflict
from stores.keys import MANIFEST
from stores.lifecycle import WriteResult
from stores.redis.keys import Keys
from stores.store import Inventoried, Row
from stores.verification import verify
from tests.support.jobs import LEAD_S, NONE, USERS, Change, Job, Kind, rows_of
from tests.support.loaded_service import complete, under_load, until
from tests.support.redis_server import RedisServer, running
from tests.support.service import Service
from tests.support.soak import SEED, scaled
from tests.support.stores import lapse

COMMITTED = {State.READY, State.LIVE, State.SUPERSEDED, State.WITHDRAWN}

# What is killed, and how often in the soak: 250 on each of the two stores.
KILLS: dict[Kind, int] = {
    "publish": 24, "stage": 6, "resume": 8, "activate": 16, "rollback": 6, "prune": 18, "copy": 16, "repair": 6,
}  # fmt: skip
STOPS: dict[Kind, int] = {"publish": 4, "resume": 2, "activate": 2, "prune": 4, "copy": 4}

# How many swaps each makes at least, in a store where nobody else does anything.
SWAPS: dict[Kind, int] = {
    "publish": 3,
    "stage": 2,
    "resume": 3,
    "activate": 1,
    "rollback": 1,
    "prune": 2,
    "copy": 3,
    "repair": 2,
}

# The share of kills right after a swap, rather than at any instant; and how long after it at most.
AFTER_SWAP, AFTER_SWAP_S = 0.3, 0.001

# How many releases a store may hold before others are begun.
CROWDED = 8

# The share of drafts that are resumed, rather than pruned and published anew.
RESUMED = 0.7

# What is killed once in the fast suite.
SHORT: tuple[Kind, ...] = ("publish", "activate", "prune", "copy", "repair")

# How long no worker is killed at most.
WORKER_S = 10.0

PATHS = tuple(f"/v1/recommendations/{n:04}?n=3" for n in range(0, USERS, 20))
CONNECTIONS, WORKERS = 32, 2


class Place(Protocol):
    """Where a store keeps its data, looked at without the store's own code."""

    url: str

    def record(self) -> bytes:
        """Return the catalogue as it stands."""
        ...

    def is_swapping(self) -> bool:
        """Return whether somebody keeps all others from the catalogue, which a store may allow for a moment."""
        ...

    async def account(self, found: Catalogue) -> None:
        """Hold that there is nothing but what the catalogue names."""
        ...


class Folder:
    """Of a `file://` store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"file://{folder}"

    def record(self) -> bytes:
        return (self.folder / "catalogue.json").read_bytes()

    def is_swapping(self) -> bool:
        with (self.folder / "catalogue.lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    async def account(self, found: Catalogue) -> None:
        names = {path.name for path in self.folder.iterdir()}
        may_lie_there = {"catalogue.spare", "catalogue.former"}
        assert names - may_lie_there == {"releases", "catalogue.json", "catalogue.lock"}
        files = {path.name for path in (self.folder / "releases").iterdir()}
        assert files == {f"{entry.incarnation}.mdb" for entry in found.releases}


class Database:
    """Of a `redis://` store that has a server to itself."""

    def __init__(self, server: RedisServer) -> None:
        self.url = server.url(prefix="kills")
        self.keys = Keys("kills")
        self.client = redis.Redis(port=server.port)

    def record(self) -> bytes:
        record = self.client.get(self.keys.catalogue)
        assert isinstance(record, bytes)
        return record

    def is_swapping(self) -> bool:
        return False

    async def account(self, found: Catalogue) -> None:
        store = connect(self.url)
        known = {self.keys.catalogue, self.keys.incarnations}
        for entry in found.releases:
            names = self.keys.release(entry.ref)
            known |= {*names.steps[0], *names.lists, names.points}
            known |= set(names.rows([row.key async for row in store.scan(entry.ref)]))
        await store.close()
        assert {key.decode() for key in self.client.scan_iter(count=10_000)} == known


@pytest.fixture(params=["file", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "file":
        yield Folder(tmp_path / "store")
        return
    folder = tmp_path / "redis"
    folder.mkdir()
    with running(folder) as server:
        database = Database(server)
        yield database
        database.client.close()


class Trial:
    """Changes to one store that are killed or stopped, and looked after; lives as long as one test."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.store = connect(place.url)
        self.source_url = f"file://{folder}/source"
        self.source = connect(self.source_url)
        self.draw = random.Random(SEED)
        self.marks = dict[ReleaseId, str]()
        """Of each release that was ever committed, whose rows it has."""

        self.takes_s = dict[Kind, float]()
        """How long each kind of change takes when it is left alone."""

        self.counts = defaultdict[str, Counter[str]](Counter)
        self._marks_drawn = 0

    async def begin(self, kinds: Iterable[Kind]) -> None:
        """Publish what is live at first, and measure changes of each of the *kinds*."""
        await self.publish()
        for kind in kinds:
            change = await self.prepared(kind)
            before, job = await self.store.catalogue(), self.start(change)
            await job.end()
            assert job.outcome == "done"
            self.takes_s[kind] = job.seconds
            await self.look(before, change)

    async def kill(self, kind: Kind) -> None:
        """Kill changes of a kind, each at a random instant, until one was killed before its end."""
        while not await self.kill_one(kind):
            self.counts[kind]["ended before"] += 1

    async def kill_one(self, kind: Kind) -> bool:
        """Kill a change at a random instant, look at what is left, and finish it; return whether it was killed."""
        change = await self.prepared(kind)
        before, job = await self.store.catalogue(), self.start(change)
        await job.interrupt(signal.SIGKILL, self.instant(job, kind, before))
        await job.end()
        found = await self.look(before, change)
        if not job.outcome:
            counts = self.counts[kind]
            counts["killed"] += 1
            counts[f"after {found.generation - before.generation} swaps"] += 1
            counts["drafts left"] += any(entry.state is State.DRAFT for entry in found.releases)
        await self.finish(change, before, job.wrote)
        return not job.outcome

    async def stop(self, kind: Kind, *, rows: int = 0) -> None:
        """Stop changes of a kind, each at a random instant or after *rows*, until one was stopped before its end."""
        while not await self.stop_one(kind, rows):
            self.counts[kind]["ended before"] += 1

    async def stop_one(self, kind: Kind, rows: int) -> bool:
        """Stop a change for longer than its lease, let others act, and let it go on; return whether it was stopped."""
        change = await self.prepared(kind)
        before, job = await self.store.catalogue(), self.start(change)
        if rows:
            await job.interrupt_after(signal.SIGSTOP, rows)
        else:
            await job.interrupt(signal.SIGSTOP, self.instant(job, kind, before))
        while (was_stopped := await job.is_stopped()) and self.place.is_swapping():
            job.send_signal(signal.SIGCONT)  # or all others would have to wait for it, and say so
            await asyncio.sleep(0.001)
            job.send_signal(signal.SIGSTOP)
        await lapse(self.store)
        other, refused = await self.other(change), ""
        try:
            await (other.make(self.store, self.source) if other.kind == "prune" else self.write(other))
        except ReleaseConflict as error:
            refused = str(error)
        job.send_signal(signal.SIGCONT)
        await job.end()
        assert not refused or " running or stopped, which holds " in refused
        assert job.outcome != ("done" if other.kind == "resume" and not refused else ""), f"{other}, refused: {refused}"
        await self.look(before, change, other)
        if was_stopped:
            beside = f"{other.kind} (refused)" if refused else other.kind
            self.counts[kind]["stopped"] += 1
            self.counts[kind][f"beside {beside} went on to {job.outcome.partition(':')[0]}"] += 1
        await self.finish(change, before, 0)
        return was_stopped

    def start(self, change: Change) -> Job:
        return Job(change, self.place.url, self.source_url)

    def instant(self, job: Job, kind: Kind, before: Catalogue) -> Callable[[], None]:
        """Return what waits for a random instant of a change, or for one right after one of its swaps."""
        if self.draw.random() >= AFTER_SWAP:
            return partial(time.sleep, LEAD_S + self.draw.uniform(0, self.takes_s[kind]))
        generation = before.generation + self.draw.randint(1, SWAPS[kind])
        pause_s = self.draw.choice([0, self.draw.uniform(0, AFTER_SWAP_S)])

        def wait() -> None:
            while orjson.loads(self.place.record())["generation"] < generation and job.process.is_alive():
                pass
            time.sleep(pause_s)

        return wait

    async def other(self, change: Change) -> Change:
        """Choose what another process does while the one that makes a change is stopped."""
        drafts = [entry.id for entry in (await self.store.catalogue()).releases if entry.state is State.DRAFT]
        others = [Change("prune"), Change("publish", self.new_mark())]
        if change.mark:
            others += [Change("resume", change.mark, draft) for draft in drafts]
        if change.kind == "copy":
            others.append(change)
        return self.draw.choice(others)

    async def prepared(self, kind: Kind) -> Change:
        """Bring the store into a state in which a change of a kind has something to do."""
        if len((await self.store.catalogue()).releases) > CROWDED:
            await life.prune(self.store, keep=1, grace_s=0, keep_ready_s=0)
        match kind:
            case "publish" | "stage":
                return Change(kind, self.new_mark())
            case "resume":
                return await self.draft()
            case "activate":
                entries = (await self.store.catalogue()).releases
                ready = [entry.id for entry in entries if entry.state is State.READY] or [await self.publish("stage")]
                return Change(kind, release=self.draw.choice(ready))
            case "copy" | "repair":
                there = {entry.id for entry in (await self.store.catalogue()).releases}
                known = [entry.id for entry in (await self.source.catalogue()).releases]
                fitting = [release for release in known if (release in there) == (kind == "repair")]
                if fitting:
                    return Change(kind, release=self.draw.choice(fitting))
                copied = Change("copy", release=await self.publish_to_source())
                if kind == "repair":
                    await self.write(copied)
                return replace(copied, kind=kind)
            case _:
                for _ in range(2):
                    await self.publish()
                return Change(kind)

    async def draft(self) -> Change:
        """Kill a publisher half way, so that there is a draft to be resumed."""
        while True:
            job = self.start(Change("publish", self.new_mark()))
            await job.interrupt_after(signal.SIGKILL, self.draw.randrange(USERS))
            await job.end()
            await lapse(self.store)
            for entry in (await self.store.catalogue()).releases:
                if entry.state is State.DRAFT:
                    return Change("resume", job.change.mark, entry.id)

    async def publish(self, kind: Kind = "publish") -> ReleaseId:
        return (await self.write(Change(kind, self.new_mark()))).manifest.release

    async def publish_to_source(self) -> ReleaseId:
        change = Change("publish", self.new_mark())
        written = await change.make(self.source, self.source)
        assert written is not None
        await life.prune(self.source, keep=3, grace_s=0)
        self.marks[written.manifest.release] = change.mark
        return written.manifest.release

    async def write(self, change: Change, *, wrote: int = 0) -> WriteResult:
        """Make a change that writes a release, of which *wrote* rows are written, here and unharmed."""
        written = await change.make(self.store, self.source)
        assert written is not None
        assert written.skipped >= wrote, "rows were written twice"
        self.marks[written.manifest.release] = written.manifest.about["mark"]
        return written

    def new_mark(self) -> str:
        self._marks_drawn += 1
        return f"m{self._marks_drawn}"

    async def look(self, before: Catalogue, *made: Change) -> Catalogue:
        """Look at the store as one who opens it now; hold that nobody who reads it saw any harm of what was *made*."""
        reader = connect(self.place.url)
        found = await reader.catalogue()
        committed = [entry for entry in found.releases if entry.state in COMMITTED]
        for entry in committed:
            mark = (await verify(reader, entry.ref)).about["mark"]
            assert self.marks.setdefault(entry.id, mark) == mark
            opened = Checksum(entry.id).open
            rows = [row async for row in reader.scan(entry.ref) if row.key != MANIFEST]
            is_whole = rows_of(mark) == [Row(key, opened(key, value)[OFFSET_BYTES:]) for key, value in rows]
            assert is_whole, f"{entry} has other lists than were published"
        await reader.close()
        assert before.live is not None
        assert found.live is not None
        assert self.marks[found.live] in {self.marks[before.live]} | {self.aim(change, before) for change in made}
        pruned = any(change.kind == "prune" for change in made)
        kept = {State.READY, State.LIVE} if pruned else COMMITTED
        gone = {entry.incarnation for entry in before.releases if entry.state in kept}
        gone -= {entry.incarnation for entry in committed}
        assert not gone, "releases that were to be kept are gone"
        return found

    def aim(self, change: Change, before: Catalogue) -> str:
        """Return whose rows a change was to make live; empty where it was not to change that."""
        match change.kind:
            case "publish" | "resume":
                return change.mark
            case "activate" | "copy":
                return self.marks[change.release]
            case "rollback" if before.live is not None:
                restored = changes.rollback(before, before.live).live
                assert restored is not None
                return self.marks[restored]
        return ""

    async def finish(self, change: Change, before: Catalogue, wrote: int) -> None:
        """Make a change again that was cut off, as whoever watches over jobs would; *wrote* of its rows are written."""
        await lapse(self.store)
        match change.kind:
            case "publish" | "stage" | "resume":
                await self.finish_publish(change, wrote)
            case "rollback":
                if (await self.store.catalogue()).live_ref == before.live_ref:
                    await change.make(self.store, self.source)
            case "copy":
                await self.write(change, wrote=wrote)
            case _:
                await change.make(self.store, self.source)
        found = await self.store.catalogue()
        assert State.DRAFT not in {entry.state for entry in found.releases}
        if change.kind == "prune":
            await self.account()

    async def finish_publish(self, change: Change, wrote: int) -> None:
        """Resume what was published, or publish it anew and prune what is left of it."""
        entries, counts = (await self.store.catalogue()).releases, self.counts[change.kind]
        drafts = [entry.id for entry in entries if entry.state is State.DRAFT]
        made = [entry for entry in entries if entry.state in COMMITTED and self.marks[entry.id] == change.mark]
        if drafts and self.draw.random() < RESUMED:
            written = await self.write(replace(change, release=drafts[0]), wrote=wrote)
            counts["resumed"] += 1
            counts["rows kept"] += written.skipped
            return
        if drafts:
            await life.prune(self.store, keep=CROWDED, grace_s=0)
            counts["pruned"] += 1
        if not made:
            await self.write(replace(change, release=NONE))
        elif change.kind != "stage" and made[-1].state is State.READY:
            await life.activate(self.store, made[-1].id)

    async def account(self) -> None:
        """Hold that the store has nothing but what its catalogue names, and that this is whole."""
        found = await self.store.catalogue()
        assert {entry.state for entry in found.releases} <= COMMITTED
        assert isinstance(self.store, Inventoried)
        assert await self.store.incarnations() == sorted(entry.incarnation for entry in found.releases)
        await self.place.account(found)

    async def end(self) -> None:
        """Prune what is no longer needed, and hold that nothing else is left."""
        await lapse(self.store)
        await life.prune(self.store, keep=0, grace_s=0, keep_ready_s=0)
        await self.account()
        assert [entry.state for entry in (await self.store.catalogue()).releases] == [State.LIVE]
        await self.store.close()
        await self.source.close()


class Answers:
    """What a service under load answered; lives as long as one load."""

    def __init__(self) -> None:
        self.marks = defaultdict[str, set[str]](set)
        """Of each release that answers named, whose rows they had."""

    def check(self, status: int, body: bytes) -> str | None:
        if (kind := complete(status, body)) is not None:
            return kind
        answer = orjson.loads(body)
        owner = answer["user"] if answer["source"] == "personal" else "popular"
        for rank, item in enumerate(answer["items"]):
            mark, *place = item["id"].split(".")
            if place != [owner, str(rank)]:
                return "another list"
            self.marks[answer["release"]].add(mark)
        return None


class Workers:
    """The workers of a service, killed one after the other; lives as long as its service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.killed = 0

    async def kill_one(self, draw: random.Random) -> None:
        """Kill one and wait until another listens in its place."""
        victim = draw.choice(self.service.workers())
        os.kill(victim, signal.SIGKILL)
        self.killed += 1

        async def is_replaced() -> bool:
            workers = self.service.workers()
            return victim not in workers and len(workers) == WORKERS == self.listening()

        await until(is_replaced, "a killed worker is not replaced")

    async def kill(self, draw: random.Random) -> None:
        """Kill one after the other until cancelled."""
        while True:
            await asyncio.sleep(draw.uniform(0, WORKER_S))
            await self.kill_one(draw)

    def listening(self) -> int:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        sockets = [line.split()[1:4] for line in lines]
        return sum(here.endswith(f":{self.service.port:04X}") and state == "0A" for here, _, state in sockets)


@asynccontextmanager
async def serving(trial: Trial, logs: Path) -> AsyncIterator[Workers]:
    """Serve the store under load; at the end, hold every answer to the promise but for what killed workers cut off."""
    answers = Answers()
    options = ("--workers", str(WORKERS))
    async with under_load(logs, trial.place.url, paths=PATHS, rate=100, options=options, check=answers.check) as run:
        workers = Workers(run.service)
        yield workers
    errors = sum((Counter(result.errors) for result in run.results), Counter[str]())
    assert set(errors) <= {"reset", "connect", "malformed"}, errors
    assert errors.total() <= CONNECTIONS * workers.killed
    assert not any(result.dropped for result in run.results)
    assert answers.marks
    for release, marks in answers.marks.items():
        assert marks == {trial.marks[ReleaseId(release)]}
    trial.counts["service"] += Counter(
        answers=run.seen("release").total(), releases=len(answers.marks), workers_killed=workers.killed
    )
    trial.counts["service"].update(run.seen("source"))
    trial.counts["service"].update({f"connections cut ({kind})": count for kind, count in errors.items()})


async def test_whoever_is_killed_at_an_instant_of_each_change_harms_nothing(place: Place, tmp_path: Path) -> None:
    trial = Trial(place, tmp_path)
    await trial.begin(SHORT)
    async with serving(trial, tmp_path) as workers:
        for kind in SHORT:
            await trial.kill(kind)
        await trial.stop("publish", rows=USERS // 2)
        await workers.kill_one(trial.draw)
    await trial.end()


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_whoever_is_killed_at_instants_of_all_changes_harms_nothing(
    place: Place, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    trial = Trial(place, tmp_path)
    await trial.begin(KILLS)
    steps = [partial(trial.kill, kind) for kind, count in KILLS.items() for _ in range(scaled(count))]
    steps += [partial(trial.stop, kind) for kind, count in STOPS.items() for _ in range(scaled(count))]
    trial.draw.shuffle(steps)
    async with serving(trial, tmp_path) as workers:
        killing = asyncio.create_task(workers.kill(trial.draw))
        for step in steps:
            await step()
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing
    await trial.end()
    for kind, counts in sorted(trial.counts.items()):
        counted = (f"{what} {count}" for what, count in sorted(counts.items()) if count)
        record_property(f"\n  {kind}:", ", ".join(counted))
