"""The draft of a scheduled run: a store has one run at a time, and each attempt goes on with the draft of its run.

A run has an id, by which the tokens of all its attempts begin, and has chosen the id of its release before anything is
written.
"""

import asyncio
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import Catalogue, DraftRef, Release, ReleaseId, State
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError
from hotplate.stores.lifecycle import change
from hotplate.stores.publication import RUNNER, lease
from hotplate.stores.store import Store

# How often a store is looked at in which another run has a draft.
_WAIT_POLL_S = 1.0
# How long a store may take to be closed whose lease was held; one that never answers is left to end with the process.
_CLOSE_S = 3.0


async def claim(store: Store, run: str, release: ReleaseId, wait_s: float = 0.0) -> DraftRef | None:
    """Become the writer of the *release* of *run*: begin it, or go on with the draft that an earlier attempt has left.

    None if it is committed. No earlier attempt may live, because its lease is not waited for. Raises ReleaseConflict if
    another run has a draft under a lease for *wait_s* seconds.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + wait_s
    writer = f"{_writer(run)}{secrets.token_hex(4)}"

    def step(found: Catalogue) -> Catalogue:
        _check_others(found, run)
        entry = _entry_of(found, run, release)
        if entry is None:
            return changes.begin(found, DraftRef(release, secrets.token_hex(6), writer))
        if entry.state is not State.DRAFT or entry.writer == writer:
            return found
        if entry.writer.startswith(_writer(run)):
            found = changes.end_lease(found, DraftRef(entry.id, entry.incarnation, entry.writer))
        return changes.take_over(found, DraftRef(entry.id, entry.incarnation, writer))

    while True:
        try:
            entry = _entry_of(await change(store, step), run, release)
        except ReleaseConflict:
            if loop.time() >= give_up_at:
                raise
            await asyncio.sleep(min(_WAIT_POLL_S, give_up_at - loop.time()))
        else:
            is_draft = entry is not None and entry.state is State.DRAFT
            return DraftRef(entry.id, entry.incarnation, writer) if entry is not None and is_draft else None


async def give_up(store: Store, run: str, release: ReleaseId) -> None:
    """Drop the draft of a run that will not be continued, if it has left one."""

    def step(found: Catalogue) -> Catalogue:
        entry = _entry_of(found, run, release)
        if entry is None or entry.state is not State.DRAFT:
            return found
        return changes.abandon(found, DraftRef(entry.id, entry.incarnation, entry.writer))

    await change(store, step)


@contextmanager
def held(url: str, draft: DraftRef) -> Iterator[None]:
    """Renew the lease of *draft* in a thread while this one is at other work.

    A lease that is lost all the same, as if the store is away for long, shows when the draft is claimed again.
    """
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def keep() -> None:
        store = connect(url)
        try:
            async with lease(store, draft):
                await done.wait()
        finally:
            with suppress(StoreError):
                await store.close()

    def work() -> None:
        try:
            loop.run_until_complete(keep())
        finally:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        yield
    finally:
        with suppress(RuntimeError):  # the thread has ended, or an interrupt kept it from starting
            loop.call_soon_threadsafe(done.set)
            thread.join(_CLOSE_S)


def _entry_of(found: Catalogue, run: str, release: ReleaseId) -> Release | None:
    """Return what the catalogue has of the *release* of *run*; ReleaseConflict if somebody else wrote that id."""
    try:
        entry = found.find(release)
    except ReleaseNotFound:
        return None
    if not entry.writer.startswith(RUNNER):
        raise ReleaseConflict(f"release {release} was written by somebody else than run {run}")
    return entry


def _writer(run: str) -> str:
    """Return how the tokens of all attempts of *run* begin."""
    return f"{RUNNER}{run}-"


def _check_others(found: Catalogue, run: str) -> None:
    """Raise ReleaseConflict if another run has a draft under a lease."""
    for entry in found.releases:
        left_s = entry.lease_left_s(found.now)
        is_run = entry.state is State.DRAFT and entry.writer.startswith(RUNNER)
        if is_run and left_s > 0 and not entry.writer.startswith(_writer(run)):
            raise ReleaseConflict(
                f"another run is writing release {entry.id} in this store, and its lease runs for {left_s:.0f} s more; "
                "wait for its end, or give --wait SECONDS"
            )
