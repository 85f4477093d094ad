"""Objects on a background loop: entries that fail, calls amid `close`, objects dropped without it, and forks."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from hotplate.base.background import Background, blocking
from tests.support.paths import ROOT
from tests.support.service import UNTIL_S, until

FORKS = """
import asyncio, os, threading
from contextlib import asynccontextmanager
from hotplate.base.background import Background, blocking

@asynccontextmanager
async def made():
    yield "object"

async def use_executor(_):
    for _ in range(1000):
        await asyncio.to_thread(int)

class Held(Background):
    use_executor = blocking(use_executor)

held, other = Held(made, RuntimeError), Held(made, RuntimeError)
callers = [threading.Thread(target=wrapper.use_executor) for wrapper in (held, other)]
for caller in callers:
    caller.start()
while any(caller.is_alive() for caller in callers):
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
"""


@asynccontextmanager
async def made() -> AsyncIterator[str]:
    yield "object"


async def wait(value: str, seconds: float) -> str:
    return await asyncio.sleep(seconds, value)


async def block(_value: str, begun: threading.Event, released: threading.Event) -> bool:
    begun.set()
    return released.wait(UNTIL_S)


async def close_here(_value: str, held: "Held") -> None:
    held.close()


class Held(Background[str]):
    wait = blocking(wait)
    block = blocking(block)
    close_here = blocking(close_here)


def closed() -> Exception:
    return ValueError("closed")


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "hotplate"}


def test_closing_ends_calls_of_other_threads() -> None:
    held = Held(made, closed)
    with ThreadPoolExecutor() as callers:
        waiting = callers.submit(held.wait, UNTIL_S)
        until(waiting.running)
        held.close()
        with pytest.raises(ValueError, match="closed"):
            waiting.result()
    with pytest.raises(ValueError, match="closed"):
        held.wait(0)


def test_an_entry_that_failed_is_tried_again_by_the_next_call() -> None:
    entries = list[str]()

    @asynccontextmanager
    async def made_at_second_try() -> AsyncIterator[str]:
        entries.append("begun")
        if len(entries) == 1:
            raise OSError("not yet")
        yield "object"
        entries.append("left")

    before = threads()
    held = Held(made_at_second_try, closed)
    with pytest.raises(OSError, match="not yet"):
        held.wait(0)
    until(lambda: not threads() - before)  # the thread of the failed entry ends
    assert held.wait(0) == "object"
    held.close()
    assert entries == ["begun", "begun", "left"]


def test_background_thread_may_close_itself() -> None:
    held = Held(made, closed)
    held.close_here(held)  # as a finalizer may
    with pytest.raises(ValueError, match="closed"):
        held.wait(0)


def test_dropped_object_ends_its_thread() -> None:
    before = threads()
    held = Held(made, closed)
    assert held.wait(0) == "object"
    assert threads() - before
    del held
    gc.collect()
    until(lambda: not threads() - before)


def test_busy_loop_does_not_hold_up_other_objects() -> None:
    begun = threading.Event()
    released = threading.Event()
    busy = Held(made, closed)
    other = Held(made, closed)
    with ThreadPoolExecutor() as callers:
        call = callers.submit(busy.block, begun, released)
        assert begun.wait(UNTIL_S)
        assert other.wait(0) == "object"
        released.set()
        assert call.result(), "the other object waited for the end of this callback"
    busy.close()
    other.close()


def test_process_forked_during_executor_use_exits() -> None:
    subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, timeout=UNTIL_S, check=True)
