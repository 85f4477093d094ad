"""Estimates of publishes into stores that are not paid for."""

import tempfile
from pathlib import Path

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.encoding import HEADER_BYTES
from hotplate.stores.errors import StoreFull
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import estimate
from hotplate.stores.store import Plan, Row, Store
from tests.support.memory_store import MemoryStore
from tests.support.stores import batches

ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{n:04}", b"%d" % n) for n in range(500))]
PLAN = Plan(len(ROWS), sum(len(key) + len(value) for key, value in ROWS))


async def publish(store: Store, *, plan: Plan = PLAN) -> Manifest:
    manifest = (await publication.publish(store, batches(ROWS, 100), plan=plan, about={})).manifest
    await life.prune(store, keep=0)
    return manifest


async def test_rows_and_bytes_are_those_that_are_put_and_nothing_is_written(tmp_path: Path) -> None:
    for store, fits in ((LmdbStore(tmp_path / "new", lambda: 1.5), True), (MemoryStore(lambda: 1.5), None)):
        found = await estimate(store, publish, live=True)
        manifest = await publish(MemoryStore(lambda: 1.5))
        key, value = manifest.key_row
        assert (found.rows, found.fits, found.seconds, found.bill) == (len(ROWS) + 1, fits, None, None)
        payload_bytes = PLAN.payload_bytes + HEADER_BYTES * PLAN.rows + len(key) + len(value)
        assert found.payload_bytes == pytest.approx(payload_bytes, abs=20)  # the time in the manifest has more digits
        assert (await store.catalogue()).releases == ()
    assert not (tmp_path / "new").exists()


async def test_what_does_not_fit_is_refused_as_a_publish_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_much(store: Store) -> Manifest:
        return await publish(store, plan=Plan(10**9, 10**18))

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with pytest.raises(StoreFull, match=r"needs about .* in .*target"):
        await estimate(LmdbStore(tmp_path / "target"), too_much, live=True)
    with pytest.raises(StoreFull, match="needs about"):
        await estimate(MemoryStore(), too_much, live=True)
    assert not list((tmp_path / "scratch").iterdir())
