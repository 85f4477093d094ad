"""The backends that tests run over, which the fixture `open_store` opens; rows, drafts and releases for them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import Catalogue, ReleaseId, ReleaseRef, State
from hotplate.stores.connect import connect
from hotplate.stores.doctor import examine
from hotplate.stores.encoding import META, OFFSET_BYTES, Checksum, body_of
from hotplate.stores.manifest import Tally
from hotplate.stores.store import Finding, Plan, Row, Store
from hotplate.stores.users import erase_users
from hotplate.stores.verification import load_manifest
from hotplate.testing import (
    FIRST,
    SECOND,
    OpenStore,
    allow_erasure,
    begin_draft,
    draft_of,
    release_ref,
    scan_rows,
    swap_catalogue,
    write_release,
)

__all__ = (
    "FIRST",
    "LISTS",
    "SECOND",
    "OpenStore",
    "allow_erasure",
    "as_bodies",
    "batches",
    "begin_draft",
    "draft_of",
    "expect_rows",
    "lapse",
    "lists_of",
    "look",
    "on_every_store",
    "publish",
    "publish_three",
    "published_rows",
    "published_values",
    "ref_of",
    "release_ref",
    "scan_rows",
    "swap_catalogue",
    "with_each_verb",
    "write_release",
)  # fmt: skip

# For code that works over any store. TLS and sockets are tested by the contract suite.
on_every_store = pytest.mark.parametrize("open_store", ["memory", "file", "redis", "cosmos+http"], indirect=True)


LISTS = [Row("popular:", b'{"id":"p"}'), Row("user:1", b'{"id":"a"}')]


def lists_of(users: int, value: bytes = b"list of %d") -> list[Row]:
    """Return a row for each of *users* users, with six digits, in the order of keys; `%d` in *value* is the number."""
    return [Row(f"user:{n:06}", value.replace(b"%d", b"%d" % n)) for n in range(users)]


def as_bodies(rows: Sequence[Row]) -> list[Row]:
    """Return rows of lists as a publish takes them; `meta` rows as they are."""
    return [Row(key, value if key.startswith(META) else body_of(value)) for key, value in rows]


async def batches(rows: Sequence[Row], size: int = 500) -> AsyncIterator[Sequence[Row]]:
    """Yield rows of lists as a publish takes them."""
    for start in range(0, len(rows), size):
        yield as_bodies(rows[start : start + size])


async def publish(
    store: Store,
    rows: Sequence[Row] = LISTS,
    size: int = 500,
    *,
    live: bool = True,
    about: Mapping[str, Any] | None = None,
    **options: Any,  # noqa: ANN401 -- the verb's own
) -> ReleaseId:
    """Publish rows of lists, *size* at a time, by a plan that is exact; return the release."""
    payload_bytes = sum(len(key) + len(value) for key, value in rows)
    arguments: dict[str, Any] = {
        "plan": Plan(len(rows), payload_bytes),
        "about": record_of(about or {}),
        "activation": publication.LIVE if live else None,
        **options,
    }
    done = await publication.publish_release(store, batches(rows, size), **arguments)
    return done.manifest.release


def record_of(origin: Mapping[str, Any]) -> publication.About:
    """Return a function that returns this record of an origin for any rows."""

    async def about(tally: Tally) -> dict[str, Any]:
        del tally
        return dict(origin)

    return about


async def ref_of(store: Store, release: ReleaseId) -> ReleaseRef:
    """Return a release that was published as stores are given it."""
    return (await store.catalogue()).find(release).ref


async def published_values(store: Store, release: ReleaseId) -> list[Row]:
    """Return all rows of a release that was published, as they are stored, in the order of the scan."""
    return [row async for row in store.scan(await ref_of(store, release))]


async def published_rows(store: Store, release: ReleaseId) -> list[Row]:
    """Return the rows without the manifest, with lists instead of values; for the encoding `json`."""
    manifest = await load_manifest(store, await ref_of(store, release))
    assert manifest.encoding == "json"
    opened = Checksum(release).open
    rows = await published_values(store, release)
    return [Row(key, opened(key, value)[OFFSET_BYTES:]) for key, value in rows if key != "meta:manifest"]


async def expect_rows(store: Store, *rows: Row) -> None:
    """Fail if a read of the keys of *rows* in FIRST returns other values."""
    assert await store.get_many(release_ref(FIRST), [row.key for row in rows]) == [row.value for row in rows]


async def look(url: str) -> dict[str, Finding]:
    """Examine the store at *url*; by subject."""
    store = connect(url)
    try:
        return {finding.subject: finding for finding in await examine(store)}
    finally:
        await store.close()


async def lapse(store: Store) -> None:
    """Let the leases of all drafts lapse now, as a minute without their writers would."""

    def lapsed(catalogue: Catalogue) -> Catalogue:
        entries = (
            replace(release, lease_until=0.0) if release.state is State.DRAFT else release
            for release in catalogue.releases
        )
        return replace(catalogue, releases=tuple(entries))

    await life.update_catalogue(store, lapsed)


async def publish_three(store: Store, rows: Sequence[Row]) -> None:
    """Publish a superseded, a live and a ready release."""
    for live in (True, True, False):
        await publish(store, rows, live=live)


async def _activate_last(store: Store) -> None:
    await life.activate(store, (await store.catalogue()).releases[-1].id)


def with_each_verb(rows: Sequence[Row]) -> pytest.MarkDecorator:
    """Run a test with each change that is made to a store after `publish_three`, as the argument `verb`."""
    verbs = {
        "publish": partial(publish, rows=rows),
        "activate": _activate_last,
        "rollback": life.rollback,
        "prune": partial(life.prune, keep=0, grace_s=0),
        "erase users": partial(erase_users, users=["3", "5"]),
    }
    return pytest.mark.parametrize("verb", verbs.values(), ids=verbs)
