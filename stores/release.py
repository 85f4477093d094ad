"""The life of releases, written once over any store: publish, activate, roll back, prune, verify."""

import secrets
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from stores import catalogue as changes
from stores.catalogue import GRACE_S, ReleaseId, State
from stores.drafting import Written, begin, renew, write
from stores.errors import ReleaseConflict, ReleaseNotFound
from stores.manifest import Manifest, Tally, describe
from stores.store import Plan, Row, Store, Thrifty
from stores.swapping import SWAP_ATTEMPTS, change, drop
from stores.verifying import load_manifest, verify

__all__ = [
    "Written", "activate", "begin", "load_manifest", "prune", "publish", "renew", "rest", "resume", "rollback",
    "verify", "write",
]  # fmt: skip
"""What a publisher and an operator do; parts of it stand in modules of their own."""


async def publish(
    store: Store,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: dict[str, Any],
    encoding: str = "json",
    live: bool = True,
) -> Manifest:
    """Write a whole release, check that it adds up, commit it and, unless told otherwise, make it live.

    Readers see nothing before the last step. A failure or an interrupt gives the draft up at once; a killed process, or
    a store that is away, leaves a draft that `resume` continues, until the next `prune` after its lease has lapsed.
    *about* goes into the manifest.
    """
    release = await _begin(store)
    written = await write(store, release, batches, plan=plan, finish=_described(store, release, encoding, about))
    await (activate if live else rest)(store, release)
    return written.manifest


async def resume(
    store: Store,
    release: ReleaseId,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: dict[str, Any],
    encoding: str = "json",
    live: bool = True,
) -> Written:
    """Go on with a draft whose publisher is gone, given the same rows anew; what was acknowledged is not put again.

    Raises ReleaseConflict where *release* is no draft, ReleaseCorrupt where the rows are not those that it began with.
    """
    await renew(store, release)
    written = await write(store, release, batches, plan=plan, finish=_described(store, release, encoding, about))
    await (activate if live else rest)(store, release)
    return written


async def activate(store: Store, release: ReleaseId) -> None:
    """Make a committed release live, once the store says that it is fit to be."""
    (await store.catalogue()).find(release)
    await store.prepare(release)
    await change(store, lambda found: changes.activate(found, release))
    await _wake(store, release)


async def rollback(store: Store) -> ReleaseId:
    """Make the release that was live before the live one live again, and return it. No data moves."""
    seen = await store.catalogue()
    if seen.live is None:
        raise ReleaseNotFound("nothing is live in this store, so there is nothing to roll back")
    expected = seen.live
    target = changes.rollback(seen, expected).live
    if target is not None:
        await store.prepare(target)
    swapped = await change(store, lambda found: changes.rollback(found, expected))
    restored = swapped.releases[-1].id
    await _wake(store, restored)
    return restored


async def prune(store: Store, *, keep: int = 1, grace_s: float = GRACE_S) -> list[ReleaseId]:
    """Erase what nobody needs any more, what an earlier prune left unfinished included; return what was erased.

    What is kept but no longer read, its grace having passed, is let rest.
    """
    marked = await change(store, lambda found: changes.prune(found, keep, grace_s))
    dropped = [entry.id for entry in marked.releases if entry.state is State.DROPPING]
    for release in dropped:
        await drop(store, release)
    for entry in marked.releases:
        if entry.state in (State.SUPERSEDED, State.WITHDRAWN) and (entry.superseded_at or 0.0) + grace_s <= marked.now:
            await rest(store, entry.id)
    return dropped


async def rest(store: Store, release: ReleaseId) -> None:
    """Let a release that is not live cost as little as it can, where that makes a difference to the store."""
    if not isinstance(store, Thrifty):
        return
    if (await store.catalogue()).live != release:
        with suppress(ReleaseNotFound):  # nothing costs less
            await store.rest(release)
    if (await store.catalogue()).live == release:  # somebody made it live meanwhile
        await store.prepare(release)


async def _wake(store: Store, release: ReleaseId) -> None:
    """Prepare a release once more, now that it is live: a prune may have let it rest just before the swap."""
    if isinstance(store, Thrifty):
        await store.prepare(release)


async def _begin(store: Store) -> ReleaseId:
    for _ in range(SWAP_ATTEMPTS):
        started = datetime.fromtimestamp((await store.catalogue()).now, UTC)
        release = ReleaseId(f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
        try:
            await begin(store, release)
        except ReleaseConflict:
            continue  # the same second and the same four digits: draw again
        return release
    raise ReleaseConflict("no free release id was found; is the store's clock standing still?")


def _described(
    store: Store, release: ReleaseId, encoding: str, about: dict[str, Any]
) -> Callable[[Tally], Awaitable[Manifest]]:
    async def finish(tally: Tally) -> Manifest:
        created_at = (await store.catalogue()).now
        return describe(release, tally, created_at=created_at, encoding=encoding, about=about)

    return finish
