"""When the generator was kept from its work, and what the machine says of why.

A request that is sent late is answered late, and so is the one behind it; an answer that is read late looks slow. From
when it was due a latency holds all of that, so the truth is at most that. Without the time that the generator was away,
and counted from when it came to the request, the truth is at least that.
"""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A request that is so late shows that the generator was away. Its timer is late by some 50 µs.
AWAY_S = 200e-6

# For how long before a request fell due an absence may have begun unseen.
AT_MOST_S = 2e-3

# Requests that piled up meanwhile are sent at once. The server has caught up when none is in flight, or after so many
# times as long, as it may be busy three quarters of the time.
SETTLES = 3.0

# Nanoseconds on a core, and waited for one, of the thread that runs the loop.
SCHEDSTAT = Path("/proc/self/schedstat")

# Ticks of each core: user, nice, system, idle, iowait, irq, softirq, steal. What guests use is in user and nice.
STAT = Path("/proc/stat")
KINDS, STEAL = 8, 7


class Absence:
    """The time that a generator was away, in seconds, by the requests that fell due meanwhile; lives for one run.

    An absence begins when the generator was last seen at work, so it is rather too long. What ends before the next
    request falls due is not seen.
    """

    def __init__(self) -> None:
        self.seen_at_s = -float("inf")
        """When the generator was last at work, by its clock; kept by itself."""

        self._total_s = 0.0
        self._before_s = 0.0
        """What it was before the newest absence."""

        self._known_until_s = self._settled_at_s = -float("inf")

    def note(self, due_s: float, now_s: float, *, idle: bool = False) -> None:
        """Note that what was due at *due_s* is looked at now, and whether nothing is in flight then.

        Overlapping absences count once. What piled up is dealt with when a request is on time and finds none in flight.
        """
        if now_s - due_s <= AWAY_S:
            if idle:
                self._settled_at_s = -float("inf")
            return
        if now_s > self._settled_at_s:
            self._before_s = self._total_s
        since_s = min(due_s, max(self.seen_at_s, self._known_until_s))
        self._total_s += now_s - max(since_s, self._known_until_s, due_s - AT_MOST_S)
        self._known_until_s = now_s
        self._settled_at_s = max(self._settled_at_s, now_s + SETTLES * (now_s - due_s))

    def mark(self, now_s: float) -> float:
        """Return what `since` takes for a request that begins now: while things settle, from before the absence."""
        return self._before_s if now_s < self._settled_at_s else self._total_s

    def since(self, mark_s: float) -> float:
        """Return how much of a request that began at a mark may be due to absences."""
        return self._total_s - mark_s


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

    It is of the first *cores* that this process may use, or of all of these. None where the kernel does not say.
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
