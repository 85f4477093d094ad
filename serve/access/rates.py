"""The clients' rate limits and the last use of their keys, in memory that all workers share.

Each client with a rate has one token bucket. It holds the tokens of one second and is filled at the rate; a request
takes one token. To save locking, a worker takes tokens for a few requests at a time. The lock is the kernel's, which
frees it if its holder dies. A worker does not wait for it: if another worker holds it, a few requests are admitted on
credit, and the worker pays for them when it next has the lock. All workers together hold at most a fiftieth of a
second's tokens, or one each, so the limit holds even if the connections are spread unevenly.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterable
from hashlib import sha256
from time import monotonic

from xxhash import xxh3_64_intdigest

from hotplate.serve.access.keys import MAX_CLIENTS, KeyHolder

# How much a bucket holds, as a client's requests come in bursts.
BURST_S = 1.0
# What part of a second's tokens all workers together may have taken and not used.
HELD_SHARE = 0.02
# How long a worker turns a client away that is out of credit while others hold the lock.
BUSY_S = 0.001
# How many clients' last uses are kept: four times as many as a file may name, because the cells of clients that are
# gone are not given back.
USES = 4 * MAX_CLIENTS


class SharedRates:
    """The buckets of all clients in memory that all workers share; made before the workers, as long as the service.

    Two arrays of MAX_CLIENTS cells of eight bytes: whose bucket it is (a hash of name and rate), and when it
    will be full.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._file = os.memfd_create("hotplate-rates", os.MFD_CLOEXEC)
        os.ftruncate(self._file, 2 * MAX_CLIENTS * 8)
        cells = memoryview(mmap.mmap(self._file, 2 * MAX_CLIENTS * 8))
        self._owners = cells[: MAX_CLIENTS * 8].cast("Q")
        self.full_at = cells[MAX_CLIENTS * 8 :].cast("d")

    def buckets(self, clients: Iterable[KeyHolder]) -> dict[str, "Bucket"]:
        """Return the buckets of the clients that have a rate, by name; each worker finds the same for a name.

        Cells of clients that are gone are given to others when there are no more free ones. Waits for other workers
        that do the same, some microseconds each.
        """
        rates = {client.name: client.rate for client in clients if client.rate is not None}
        # A client with another rate begins with a full bucket: the debt of the old one was counted at the old rate.
        owners = {
            name: int.from_bytes(sha256(f"{name} {rate}".encode()).digest()[:8]) | 1 for name, rate in rates.items()
        }
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, MAX_CLIENTS)
        try:
            cells = {owner: cell for cell, owner in enumerate(self._owners) if owner}
            wanted = set(owners.values())
            free = [cell for cell, owner in enumerate(self._owners) if not owner]
            free = [cell for owner, cell in cells.items() if owner not in wanted] + free[::-1]
            for owner in wanted - cells.keys():
                cells[owner] = free.pop()
                self._owners[cells[owner]] = owner
                self.full_at[cells[owner]] = 0.0
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, MAX_CLIENTS)
        return {name: Bucket(self, cells[owners[name]], rate) for name, rate in rates.items()}

    def try_lock(self, cell: int) -> bool:
        """Lock one cell against other processes; False if one of them holds it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, cell)
        except OSError:
            return False
        return True

    def unlock(self, cell: int) -> None:
        """Unlock one cell."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, cell)


class Bucket:
    """One worker's way to one client's tokens; lives until the keys are loaded again."""

    __slots__ = ("_batch", "_capacity", "_cell", "_held", "_rate", "_refused_until", "_shared")

    def __init__(self, shared: SharedRates, cell: int, rate: float) -> None:
        self._shared = shared
        self._cell = cell
        self._rate = rate
        self._capacity = max(1.0, rate * BURST_S)
        self._batch = max(1, int(rate * HELD_SHARE / shared.workers))
        self._held = 0
        self._refused_until = 0.0

    def take(self) -> float:
        """Take a token for one request: 0 if there was one, else the seconds until there is."""
        if self._held > 0:
            self._held -= 1
            return 0.0
        now = monotonic()
        if now < self._refused_until:
            return self._refused_until - now
        if not self._shared.try_lock(self._cell):
            if self._held <= -self._batch:
                return BUSY_S
            self._held -= 1
            return 0.0
        try:
            return self._refill(now)
        finally:
            self._shared.unlock(self._cell)

    def _refill(self, now: float) -> float:
        """Take a token for the request, pay the credit, and take a batch with them where the bucket has so many."""
        full_at = max(now, self._shared.full_at[self._cell])
        there = self._capacity - (full_at - now) * self._rate
        if there < 1:
            wait_s = (1 - there) / self._rate
            self._refused_until = now + wait_s
            return wait_s
        owed = 1 - self._held
        taken = max(owed, min(owed - 1 + self._batch, int(there)))
        self._shared.full_at[self._cell] = full_at + taken / self._rate
        self._held += taken - 1
        return 0.0


class LastUses:
    """When each client's key was last used; made before the workers, and forgotten when the service ends.

    A request only marks its client in its own process. Once a second the marks become times, so to know costs the path
    of a request a few nanoseconds, and nothing without keys. There are two arrays of USES cells of eight bytes: clients
    by a hash of their names, and when they came last. Nothing is locked: where two processes take one cell for two new
    clients in the same instant, one of the two finds another a second later.
    """

    def __init__(self) -> None:
        cells = memoryview(mmap.mmap(-1, 2 * USES * 8))
        self._owners = cells[: USES * 8].cast("Q")
        self._times = cells[USES * 8 :].cast("d")
        self.marked = set[str]()
        """The clients of this process whose requests came since the last `record`."""

    def record(self) -> None:
        """Have the clients that are marked been here now."""
        if not self.marked:
            return
        marked, self.marked = self.marked, set()
        now = time.time()
        for name in marked:
            cell = self._cell(name)
            if cell is not None:
                self._times[cell] = now

    def of(self, name: str) -> float | None:
        """Return when a client came last, as Unix time; None if it has not since the service started."""
        cell = self._cell(name)
        return None if cell is None else self._times[cell] or None

    def _cell(self, name: str) -> int | None:
        """Return a client's cell, which becomes its own if it had none; None if all are taken."""
        owner = xxh3_64_intdigest(name.encode()) or 1
        for step in range(USES):
            cell = (owner + step) % USES
            if self._owners[cell] in (0, owner):
                self._owners[cell] = owner
                return cell
        return None
