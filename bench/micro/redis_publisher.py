"""A publisher in a process of its own, for the figures of reads: publishes until told to stop, then tidies up."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from bench.lists import Shape
from bench.micro.redis_lists import LIST_LENGTH, Watches, publish_lists
from stores.lifecycle import prune
from stores.redis.store import RedisStore, open_url

NICENESS = 19
"""It has a machine of its own in real life; here the kernel lets it run where nobody else wants to."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """The process, from the side of whoever started it."""

    asks: IO[str]
    tells: IO[str]

    def begin(self) -> None:
        """Let it publish one release after the other."""
        self.asks.write("begin\n")
        self.asks.flush()

    def end(self) -> float:
        """Let it finish the release at hand; return how many lists a second it wrote, RuntimeError where it died."""
        self.asks.write("end\n")
        self.asks.flush()
        return float(json.loads(self._told()))

    def wait(self) -> None:
        """Wait until its rows are made."""
        self._told()

    def _told(self) -> str:
        line = self.tells.readline()
        if not line:
            raise RuntimeError("the publisher has died; what it said is above")
        return line


@contextmanager
def publisher(url: str, users: int, encoding: str) -> Iterator[Publisher]:
    """Start a publisher of *users* lists, and wait until it could begin."""
    command = [sys.executable, "-m", "bench.micro.redis_publisher", "--store", url, "--users", str(users)]
    with subprocess.Popen(  # noqa: S603 -- our own module
        [*command, "--encoding", encoding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        try:
            started = Publisher(process.stdin, process.stdout)
            started.wait()
            yield started
        finally:
            process.kill()


async def publish_until(told: asyncio.Event, store: RedisStore, shape: Shape, encoding: str) -> float:
    """Publish until *told* to stop; return lists per second."""
    shared = shape.drawn()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    stopping = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    stopping.add_done_callback(lambda _: told.set())
    started, releases = time.perf_counter(), 0
    while not told.is_set():
        await publish_lists(store, shape, shared, encoding, Watches())
        releases += 1
    return releases * shape.users / (time.perf_counter() - started)


async def serve_one_round(url: str, shape: Shape, encoding: str) -> None:
    """Publish when told, tell the rate, and leave the newest release only."""
    store = open_url(url)
    try:
        lists_per_s = await publish_until(asyncio.Event(), store, shape, encoding)
        await prune(store, keep=0, grace_s=0.0)
        print(lists_per_s, flush=True)
    finally:
        await store.close()


def main() -> None:
    """Be the publisher."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.redis_publisher", description=__doc__)
    parser.add_argument("--store", required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--encoding", required=True)
    asked = parser.parse_args()
    os.nice(NICENESS)
    asyncio.run(serve_one_round(asked.store, Shape(asked.users, LIST_LENGTH), asked.encoding))


if __name__ == "__main__":
    main()
