"""When the generator itself stalled, and the machine's figures for the reason.

A request that is sent late is answered late, and so is the one behind it. An answer that is read late looks slow. The
latency from when a request was due includes all such delays, so it is an upper bound of the server's true latency.

The lower bound is that latency less the delays that stalls may have caused:

- the longest lateness of this request and of those sent shortly before. If a server gets requests late by at most D,
  it answers each of them late by at most D
- the stall after which the answer was read, because the answer may have come at its beginning, but not before
- if the request waited for a connection: instead of that, all stalls since one was last free, because each of them
  may have delayed a connection
"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A request that is so late shows that the generator was away. Its timer is late by some 50 µs.
AWAY_S = 200e-6

# For how long before a request fell due a stall may have begun unseen.
AT_MOST_S = 2e-3

# Requests that piled up are sent at once. The server has caught up when none is in flight, or after so many
# times as long, as it may be busy three quarters of the time.
SETTLES = 3.0

# Nanoseconds on a core, and waited for one, of the thread that runs the loop.
SCHEDSTAT = Path("/proc/self/schedstat")

# Ticks of each core: user, nice, system, idle, iowait, irq, softirq, steal. User and nice hold that of guests.
STAT = Path("/proc/stat")
KINDS = 8
STEAL = 7


class GeneratorStalls:
    """The time that a generator was away, in seconds, by the requests that fell due in it; lives for one run.

    A stall begins when the generator was last seen at work, so it is rather too long. What ends before the next
    request falls due is not seen.
    """

    def __init__(self) -> None:
        self.seen_at_s = -float("inf")
        """When the generator was last at work, by its clock; it keeps this."""

        self.total_s = 0.0
        """Of all stalls so far; those that overlap count once."""

        self.unread_s = 0.0
        """How long an answer that is read now may have waited for that; zero once all that had come is read."""

        self._known_until_s = -float("inf")
        self._latenesses = list[tuple[float, float]]()
        """Until when a lateness may still delay answers, and how long it was: the longest first."""

    def note(self, due_s: float, now_s: float, *, idle: bool = False) -> bool:
        """Note that what was due at *due_s* is looked at now, and whether nothing is in flight then.

        Return whether answers may lie unread from now on: `all_read` is to be called once they are read.
        """
        late_s = now_s - due_s
        if late_s <= AWAY_S:
            if idle:
                self._latenesses.clear()
            return False
        longer = [each for each in self._latenesses if each[0] > now_s and each[1] > late_s]
        self._latenesses = [*longer, (now_s + SETTLES * late_s, late_s)]
        away_s = now_s - max(self._known_until_s, due_s - AT_MOST_S, min(due_s, self.seen_at_s))
        self._known_until_s = now_s
        self.total_s += away_s
        self.unread_s += away_s
        return self.unread_s == away_s > 0

    def delay(self, late_s: float, now_s: float) -> float:
        """Return by how much a request that is sent now, *late_s* too late, may be answered later than it should be."""
        return max([late_s, *(longest_s for until_s, longest_s in self._latenesses if until_s > now_s)])

    def all_read(self) -> None:
        """Note that all is read that came while the generator was away."""
        self.unread_s = 0.0


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What one generator process used for a run: CPU time, waiting for a core (on Linux), and the time it took.

    `switches` took its core away for somebody else; of the time of its cores `stolen` went to other machines.
    """

    cpu_s: float
    waited_s: float
    wall_s: float
    switches: int = 0
    stolen: float | None = None


def measure_usage(clock: Callable[[], float]) -> Callable[[], ProcessUsage]:
    """Begin to measure this process; the returned function ends it."""
    started_s, before_s, stolen = clock(), _cpu_and_wait_s(), measure_stolen()
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def end() -> ProcessUsage:
        after_s = _cpu_and_wait_s()
        return ProcessUsage(
            cpu_s=after_s[0] - before_s[0],
            waited_s=after_s[1] - before_s[1],
            wall_s=clock() - started_s,
            switches=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches,
            stolen=stolen(),
        )

    return end


def measure_stolen(cores: int | None = None) -> Callable[[], float | None]:
    """Begin to measure the CPU that the host gives to other machines; the returned function ends it with the share.

    It is of the first *cores* that this process may use, or of all of these. None if the kernel does not say.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    before = _steal_and_all(allowed)

    def end() -> float | None:
        after = _steal_and_all(allowed)
        if before is None or after is None:
            return None
        return (after[0] - before[0]) / max(1, after[1] - before[1])

    return end


def _cpu_and_wait_s() -> tuple[float, float]:
    """Return the CPU time of this process so far, and how long its main thread waited for a core (0 where unknown)."""
    waited_s = int(SCHEDSTAT.read_text().split()[1]) / 1e9 if SCHEDSTAT.exists() else 0.0
    return time.process_time(), waited_s


def _steal_and_all(cores: list[int]) -> tuple[int, int] | None:
    if not STAT.exists():
        return None
    names = {f"cpu{core}" for core in cores}
    lines = [line.split() for line in STAT.read_text().splitlines()]
    ticks = [[int(tick) for tick in line[1 : 1 + KINDS]] for line in lines if line and line[0] in names]
    known = [each for each in ticks if len(each) > STEAL]
    return (sum(each[STEAL] for each in known), sum(map(sum, known))) if known else None
