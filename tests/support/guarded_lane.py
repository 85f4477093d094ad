"""Feeds a build of the fast lane with memory that ends, or begins, at a guard page: EXTENSION EXAMPLES MINUTES SEED.

A read beyond a request or a stored row is a segmentation fault, also in a build without a sanitizer. Run it as
`python -m tests.support.guarded_lane`; it prints how many requests were the lane's.
"""

import asyncio
import ctypes
import mmap
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from random import Random
from typing import TYPE_CHECKING, cast

from hotplate.serve.api.app import Dispatcher
from hotplate.serve.connections.server import server_of
from hotplate.serve.lists.reader import TieredReader
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import Checksum
from hotplate.stores.store import LocalRows, Row
from tests.support.lane import VARYING
from tests.support.memory_store import MemoryRows, MemoryStore
from tests.support.requests import CORPUS, HOST, USER, pieces, request
from tests.support.service import a_list
from tests.support.stores import publish

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

MODULE = "hotplate.serve.connections.lane"
PAGE = mmap.PAGESIZE
PAGES = 16
LISTS = {f"user:{n}": a_list(*(f"{n}-{m}" for m in range(20))) for n in range(5)} | {
    "item:1": a_list("2", "3"),
    "popular:": a_list(*map(str, range(15))),
}
# Users with random rows: intact, cut, damaged, with other offsets.
DRAWN = "drawn"


class Guarded:
    """Pages between two guard pages; `put` places bytes at their end, or at their beginning."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, (PAGES + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for place in (0, PAGES + 1):
            assert protect(ctypes.c_void_p(start + place * PAGE), ctypes.c_size_t(PAGE), 0) == 0

    def put(self, data: bytes, *, at_end: bool) -> memoryview:
        """Return *data* in these pages."""
        start = (PAGES + 1) * PAGE - len(data) if at_end else PAGE
        self._map[start : start + len(data)] = data
        return memoryview(self._map)[start : start + len(data)]


class GuardedStore(MemoryStore):
    """Gives rows to the lane in guarded memory, and draws those of some users."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = Guarded()
        self._reads = 0

    def rows_of(self, release: ReleaseRef) -> LocalRows:
        def read(key: bytes) -> bytes | None:
            self._reads += 1
            row = self.get(release, key.decode())
            return None if row is None else cast("bytes", self._memory.put(row, at_end=self._reads % 2 == 0))

        return MemoryRows(read)

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        if not key.startswith(f"user:{DRAWN}"):
            return super().get(release, key)
        random = Random(key)
        body = random.choice([b"%04x" % random.randrange(700), b"0000", b"ffff"])
        body += random.randbytes(random.randrange(4)) + b",\n" * random.randrange(3)
        body += b",\n".join(b'{"id":"%d"}' % number for number in range(random.randrange(40)))
        row = Checksum(release.id).seal(key, body)
        return row[: random.randrange(len(row))] if random.random() < 0.1 else row


def drawn(random: Random) -> bytes:
    """Draw a request, or other bytes."""
    kind = random.randrange(4)
    data = b"".join(pieces(random)) if kind == 0 else request(random)
    if kind == 1:
        data = random.choice(CORPUS)
    if kind < 3 and random.randrange(2):
        user = b"%b%d" % (DRAWN.encode(), random.randrange(400))
        data = b"GET %b%b?n=%d HTTP/1.1\r\n%b\r\n" % (USER.encode(), user, random.randrange(1, 30), HOST)
    return data


def malformed(random: Random, data: bytes) -> bytes:
    """Cut bytes at random places, and change some."""
    changed = bytearray(data[random.randrange(8) if random.random() < 0.1 else 0 : random.randrange(len(data) + 1)])
    for _ in range(random.randrange(4) if changed else 0):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def load(extension: str) -> None:
    """Load a build of the lane as the one that is installed."""
    specification = spec_from_file_location(MODULE, extension)
    assert specification is not None
    assert specification.loader is not None
    sys.modules[MODULE] = module_from_spec(specification)
    specification.loader.exec_module(sys.modules[MODULE])


async def main(examples: int, minutes: float, seed: int) -> None:
    """Feed *examples* requests and as many malformed byte strings, and go on for *minutes*."""
    from hotplate.serve.connections.lane import Lane  # noqa: PLC0415 -- that of `load`

    store = GuardedStore()

    await publish(store, [Row(key, value) for key, value in sorted(LISTS.items())])
    random = Random(seed)
    memory = Guarded()
    async with TieredReader({"store": store}) as reader:
        await reader.wait_until_ready(30)
        lane = server_of(Dispatcher(reader), fast_lane=True).lane
        assert isinstance(lane, Lane)
        ends_at = time.monotonic() + 60 * minutes
        count = taken = 0
        while count < examples or time.monotonic() < ends_at:
            data = drawn(random)
            taken += feed(lane, memory, data, at_end=random.random() < 0.5)
            feed(lane, memory, malformed(random, data), at_end=random.random() < 0.5)
            count += 1
            if count % 64 == 0:
                await asyncio.sleep(0)
    sys.stdout.write(f"{taken} of {count}\n")


def ignore(_: bytes) -> None:
    """Take the later answer of the reader to a request for a damaged row."""


def feed(lane: "Lane", memory: Guarded, data: bytes, *, at_end: bool) -> bool:
    """Let the lane answer guarded bytes and a copy of them; fail if the answers differ."""
    data = data[: PAGES * PAGE]
    guarded = lane.answer(memory.put(data, at_end=at_end), time.monotonic(), ignore)
    copied = lane.answer(data, time.monotonic(), ignore)
    assert (guarded is None) == (copied is None), data
    assert guarded is None or copied is None or VARYING.sub(b"", guarded) == VARYING.sub(b"", copied), data
    return guarded is not None


if __name__ == "__main__":
    load(sys.argv[1])
    asyncio.run(main(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
