"""The doctor on every store: its findings, and that it changes nothing."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import publication
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef, State
from hotplate.stores.doctor import READS, examine
from hotplate.stores.errors import HEAL, AccessDenied, StoreUnavailable
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Finding, Level, Plan, ReadResult, Row, Store, StoreUse
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.stores import LISTS, OpenStore, publish, ref_of


async def finding_of(store: object, subject: str, clock: Callable[[], float] = time.time) -> tuple[Level, str]:
    findings = await examine(cast("Store", store), clock)  # the doctor only reads, which is all that some of them offer
    (finding,) = [candidate for candidate in findings if candidate.subject == subject]
    return finding.level, finding.sentence


async def test_new_store_has_no_live_release_and_no_error(open_store: OpenStore) -> None:
    store = open_store()
    findings = await examine(store)
    assert [finding.level for finding in findings if finding.subject == "live"] == [Level.WARNING]
    assert Level.ERROR not in {finding.level for finding in findings}, findings
    assert (await store.catalogue()).generation == 0, "it changed something"


async def test_age_of_the_release_and_of_its_newest_event_is_shown(open_store: OpenStore) -> None:
    store = open_store()
    release = await publish(store)
    (finding,) = [finding for finding in await examine(store) if finding.subject == "freshness"]
    assert finding == Finding(Level.OK, "freshness", f"{release} is 0.0 hours old")
    now = datetime.fromtimestamp((await store.catalogue()).now, UTC)
    release = await publish(store, about={"learnt_until": (now - timedelta(hours=30)).isoformat()})
    (finding,) = [finding for finding in await examine(store) if finding.subject == "freshness"]
    assert finding.sentence == f"{release} is 0.0 hours old, its newest event 30.0 hours"


async def test_sound_store_has_no_error_and_its_live_release_is_read(open_store: OpenStore) -> None:
    store = open_store()
    first = await publish(store)
    second = await publish(store)
    before = await store.catalogue()
    findings = await examine(store)
    by_subject = {finding.subject: finding for finding in findings}
    assert Level.ERROR not in {finding.level for finding in findings}, findings
    assert by_subject["live"].sentence.startswith(f"{second}, live since ")
    assert "20 point reads: median" in by_subject["reading"].sentence
    assert by_subject["left over"] == Finding(Level.OK, "left over", "nothing")
    assert "hotplate" in by_subject["version"].sentence
    after = await store.catalogue()
    assert (after.version, after.releases) == (before.version, before.releases)
    assert {entry.id for entry in after.releases} == {first, second}


async def test_store_clock_is_compared_with_the_local_clock(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    now = clock()
    assert (await finding_of(store, "clock", lambda: now))[0] == Level.OK
    assert (await finding_of(store, "clock", lambda: now - 1.5))[0] == Level.OK
    for ours, sentence in ((now - 3.0, "3.0 s ahead of ours"), (now + 40.0, "40.0 s behind ours")):
        level, said = await finding_of(store, "clock", lambda ours=ours: ours)  # type: ignore[misc]  # mypy infers no lambda's default
        assert (level, sentence in said, "NTP" in said) == (Level.WARNING, True, True)


async def test_leftovers_are_named_with_advice(clock: FakeClock, tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, clock)
    live = await publish(store)
    draft = (await publication.begin(store, ReleaseId("20260101T000000Z-0001"))).id
    assert (await finding_of(store, "left over"))[0] == Level.OK
    clock.now += 61
    level, sentence = await finding_of(store, "left over")
    assert (level, draft in sentence, "--resume" in sentence) == (Level.WARNING, True, True)
    catalogue = await store.catalogue()
    dropping = tuple(
        replace(entry, state=State.DROPPING) if entry.id == draft else entry for entry in catalogue.releases
    )
    await store.swap(catalogue, replace(catalogue, generation=catalogue.generation + 1, token="t", releases=dropping))
    level, sentence = await finding_of(store, "left over")
    assert (level, "hotplate releases prune" in sentence) == (Level.WARNING, True)
    assert live in (await finding_of(store, "live"))[1]
    await store.close()


async def test_unreferenced_data_are_listed(open_store: OpenStore) -> None:
    store = open_store()
    live = await publish(store)
    draft = DraftRef(ReleaseId("20250101T000000Z-0000"), "0123456789ab", "someone")
    await store.create(draft, Plan(1, 100))
    level, sentence = await finding_of(store, "left over")
    assert (level, "0123456789ab" in sentence, "prune" in sentence, live in sentence) == (
        Level.WARNING, True, True, False,
    )  # fmt: skip


async def test_lost_catalogue_gives_one_error_with_a_remedy_and_no_other_advice(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    await publish(store)
    (tmp_path / "catalogue.json").unlink()
    findings = await examine(store)
    assert [finding.subject for finding in findings if finding.level is Level.ERROR] == ["catalogue"]
    assert [finding.subject for finding in findings if "store rebuild" in finding.sentence] == ["catalogue"]
    assert not [
        finding for finding in findings if "prune" in finding.sentence or "first publish" in finding.sentence
    ], findings
    await store.close()


async def test_a_store_that_cannot_be_read_is_one_error_and_no_exception() -> None:
    class CutOffStore(MemoryStore):
        async def catalogue(self) -> Catalogue:
            raise StoreUnavailable("the cable is cut")

    findings = await examine(CutOffStore())
    assert [finding.sentence for finding in findings if finding.level == Level.ERROR] == ["the cable is cut"]


async def test_other_release_that_may_not_be_read_is_not_advised() -> None:
    class DeniedStore(MemoryStore):
        denied = ReleaseId("")

        async def get_many(
            self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
        ) -> list[ReadResult]:
            if release.id == self.denied:
                raise AccessDenied("its file belongs to another user")
            return await super().get_many(release, keys, timeout_s=timeout_s)

    store = DeniedStore()
    store.denied = await publish(store)
    live = await ref_of(store, await publish(store))
    del store.releases[live.incarnation]
    level, sentence = await finding_of(store, "live")
    assert (level, HEAL in sentence) == (Level.ERROR, True)


async def test_timed_reads_have_a_time_limit_as_lookups_have() -> None:
    limits_s = list[float | None]()

    class RecordingStore(MemoryStore):
        async def get_many(
            self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
        ) -> list[ReadResult]:
            limits_s.append(timeout_s)
            return await super().get_many(release, keys, timeout_s=timeout_s)

    store = RecordingStore()
    await publish(store)
    await examine(store)
    assert len([limit_s for limit_s in limits_s if limit_s is not None]) == READS


async def test_lost_rows_of_live_release_and_canary_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.stores.doctor.BUDGET_S", 60.0)  # a slower read is a warning
    store = MemoryStore()
    rows = [LISTS[0], *(Row(f"user:{n:03}", a_list("a")) for n in range(200))]
    for live in (True, False):
        release = await publish(store, rows, live=live)
    await life.start_canary(store, release, 5)
    assert {error.level for error in await examine(store)} == {Level.OK}
    for stored in store.releases.values():
        for n in range(0, 200, 5):
            del stored.rows[f"user:{n:03}"]
    error_findings = [error for error in await examine(store) if error.level is Level.ERROR]
    assert len(error_findings) == 2
    assert not uses_prevented_by(error_findings)
    for entry, finding in zip((await store.catalogue()).served, error_findings, strict=True):
        assert f"of {entry.id}, rows are missing or damaged: " in finding.sentence
        assert finding.sentence.count(HEAL) == 1
    for stored in store.releases.values():
        del stored.rows["popular:"]
    error_findings = [error for error in await examine(store) if error.level is Level.ERROR]
    assert any("has lost its row 'popular:'" in error.sentence for error in error_findings), error_findings
    assert uses_prevented_by(error_findings) == {StoreUse.SERVING}


def uses_prevented_by(findings: Sequence[Finding]) -> set[StoreUse]:
    return {use for finding in findings for use in finding.prevented}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_read_only_folder_serves_and_an_unreadable_one_is_an_error(open_folder: Path) -> None:
    store = LmdbStore(open_folder / "store")
    await publish(store)
    os.seteuid(65534)
    try:
        level, sentence = await finding_of(store, "may publish")
        assert (level, "right for a service" in sentence, str(open_folder) in sentence) == (Level.WARNING, True, True)
        assert await finding_of(store, "may read") == (Level.OK, "yes")
    finally:
        os.seteuid(0)
    assert await finding_of(store, "may publish") == (Level.OK, "yes")
    (open_folder / "store" / "catalogue.json").chmod(0o600)
    os.seteuid(65534)
    try:
        level, sentence = await finding_of(store, "may read")
        assert (level, "catalogue.json" in sentence) == (Level.ERROR, True)
    finally:
        os.seteuid(0)
    await store.close()


async def test_live_since_is_the_activation_time_and_not_the_end_of_a_canary(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    await publish(store)
    live = await publish(store)
    went_live = clock.now
    canary = await publish(store, live=False)
    await life.start_canary(store, canary, 5.0)
    clock.now += 5400
    await life.abort(store)
    said = (await finding_of(store, "live", clock))[1]
    assert f"{live}, live since {datetime.fromtimestamp(went_live, UTC):%Y-%m-%d %H:%M:%S}Z" in said


async def test_a_file_in_the_place_of_a_folder_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        findings = await examine(LmdbStore(folder))
        assert [finding.subject for finding in findings] == ["version", "set-up"]
        assert f"a part of the path {folder} is a file; a store is a folder" in findings[-1].sentence


async def test_missing_folder_is_reported(tmp_path: Path) -> None:
    level, sentence = await finding_of(LmdbStore(tmp_path / "typo"), "may read")
    assert (level, sentence) == (Level.OK, f"{tmp_path / 'typo'} does not exist yet; the first publish makes it")
