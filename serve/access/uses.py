"""When each client's key was last used, in memory that all processes of a service share; forgotten when it ends.

A request only marks its client in its own process; once a second the marks become times, so to know costs the path
of a request a few nanoseconds, and nothing without keys.
"""

import mmap
import time

from xxhash import xxh3_64_intdigest

from hotplate.serve.access.keys import MAX_CLIENTS

# Four times as many as a file may name, as the cells of clients that are gone are not given back.
CELLS = 4 * MAX_CLIENTS


class LastUses:
    """Two arrays of CELLS cells of eight bytes: clients by a hash of their names, and when they came last.

    Made before the workers. Nothing is locked: where two processes take one cell for two new clients in the same
    instant, one of the two finds another a second later.
    """

    def __init__(self) -> None:
        cells = memoryview(mmap.mmap(-1, 2 * CELLS * 8))
        self._owners = cells[: CELLS * 8].cast("Q")
        self._times = cells[CELLS * 8 :].cast("d")
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
        for step in range(CELLS):
            cell = (owner + step) % CELLS
            if self._owners[cell] in (0, owner):
                self._owners[cell] = owner
                return cell
        return None
