"""A program that calls `hotplate.open_sync` in threads, and forks while they call; its children do the same.

Each thread calls as often as it has to, and goes on until a file is there. Then its process prints a line: how often it
called, when it last began a call that was answered from each release, and what went wrong.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import hotplate

# Between two calls of a thread, so the processes do not take the machine from the one that publishes.
PAUSE_S = 0.002


class Callers:
    """Threads of one process, each of which makes so many calls, and more until *stop* is there."""

    def __init__(self, lists: hotplate.SyncLists, threads: int, each: int, stop: Path) -> None:
        self._lists, self._each, self._stop = lists, each, stop
        self._calls = [0] * threads
        self._last = [dict[str, float]() for _ in range(threads)]
        self._errors = list[str]()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _call(self, number: int) -> None:
        last = self._last[number]
        try:
            while self._calls[number] < self._each or not self._stop.exists():
                started = time.monotonic()
                found = self._lists.personal("42")
                assert found.source == "personal"
                last[found.release] = started
                self._calls[number] += 1
                time.sleep(PAUSE_S)
        except Exception as error:  # noqa: BLE001 -- it is printed
            self._errors.append(repr(error))

    def made(self) -> int:
        return sum(self._calls)

    def report(self) -> None:
        """Wait for the threads to end, and print the line."""
        for thread in self._threads:
            thread.join()
        last = {name: max(one.get(name, 0.0) for one in self._last) for name in set().union(*self._last)}
        line = json.dumps({"calls": self.made(), "last": last, "errors": self._errors}) + "\n"
        os.write(1, line.encode())


def main(url: str, stop: Path, threads: int, each: int, forks: int) -> None:
    lists = hotplate.open_sync(url)
    callers, children = Callers(lists, threads, each, stop), list[int]()
    for number in range(forks):
        while callers.made() < threads * each * number // forks:
            time.sleep(0.01)
        child = os.fork()
        if not child:
            Callers(lists, threads, each, stop).report()
            os._exit(0)
        children.append(child)
    callers.report()
    for child in children:
        assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
