"""Objects on a background loop: late calls, calls amid `close`, and objects that are dropped without it."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from hotplate import background
from hotplate.background import Background
from tests.support.paths import ROOT
from tests.support.service import UNTIL_S, until

FORKS = """
import asyncio, os, threading
from contextlib import asynccontextmanager
from hotplate.background import Background

@asynccontextmanager
async def made():
    yield "object"

async def use_executor(_):
    for _ in range(1000):
        await asyncio.to_thread(int)

held = Background(made, RuntimeError)
caller = threading.Thread(target=held.run, args=(use_executor, 60.0))
caller.start()
while caller.is_alive():
    if not (child := os.fork()):
        os._exit(0)
    os.waitpid(child, 0)
"""


@asynccontextmanager
async def made() -> AsyncIterator[str]:
    yield "object"


def closed() -> Exception:
    return ValueError("closed")


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "hotplate"}


def test_a_call_that_outlives_its_deadline_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Background(made, closed)
    assert held.run(lambda value: asyncio.sleep(0, value), 1.0) == "object"
    monkeypatch.setattr(background, "LOOP_S", 0.01)
    with pytest.raises(TimeoutError):
        held.run(lambda _: asyncio.sleep(UNTIL_S), 0.0)
    monkeypatch.undo()
    held.close()


def test_closing_ends_calls_of_other_threads() -> None:
    held = Background(made, closed)
    with ThreadPoolExecutor() as callers:
        waiting = callers.submit(held.run, lambda _: asyncio.sleep(UNTIL_S), UNTIL_S)
        until(waiting.running)
        held.close()
        with pytest.raises(ValueError, match="closed"):
            waiting.result()
    with pytest.raises(ValueError, match="closed"):
        held.halted()


def test_an_object_that_is_dropped_ends_its_thread() -> None:
    before, held = threads(), Background(made, closed)
    with held.halted() as value:
        assert value == "object"
    assert threads() - before
    del held
    gc.collect()
    until(lambda: not threads() - before)


def test_forks_while_the_loop_uses_an_executor_end() -> None:
    subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, timeout=UNTIL_S, check=True)
