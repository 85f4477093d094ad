"""Processes that share a folder, with their system calls in each order; one is killed at each."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hotplate.stores.catalogue import Catalogue, DraftRef, Release, ReleaseId, State
from hotplate.stores.errors import ReleaseConflict, StoreError
from hotplate.stores.file.catalogue_file import CatalogueFile
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan, RecordChange
from hotplate.stores.transitions import succeed
from tests.support.soak import in_soak
from tests.support.system_calls import DEADLINE_S, Killed, Process, Schedule, finish, patch_calls, run, schedules

DRAFT = DraftRef(ReleaseId("20261120T064200Z-aaaa"), "0123456789ab", "one")
PLAN = Plan(10, 1000)

Work = Callable[[], object]


def grown(old: Catalogue, token: str, releases: int = 0) -> Catalogue:
    """Return a successor that has more releases."""
    more = (Release(ReleaseId(f"{token}-{n}"), f"{token}{n}", State.WITHDRAWN, 0.0, "writer") for n in range(releases))
    return succeed(old, Catalogue(old.store_id, releases=(*old.releases, *more)), token, "here")


FIRST = grown(Catalogue(), "first")
SECOND = grown(FIRST, "second")
ONES = grown(SECOND, "one", 5)
OTHERS = grown(SECOND, "other", 5)
THIRDS = grown(ONES, "third", 2)

# The number of switches from a process to the other; None is unlimited.
LIMITS = pytest.mark.parametrize("switches", [2, in_soak(None)])


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Iterator[tuple[Schedule, Path]]]:
    """Return what yields schedules, each with a folder that has a catalogue and the room for the next."""
    patch_calls(monkeypatch)
    # A process that waits for a lock tries it again at each turn of it, whatever time has passed.
    monkeypatch.setattr("hotplate.stores.file.catalogue_file.LOCK_TIMEOUT_S", DEADLINE_S)
    begun = tmp_path / "begun"
    for old, new in ((Catalogue(), FIRST), (FIRST, SECOND)):
        finish(LmdbStore(begun).swap(old, new))
    (begun / "releases").mkdir()

    def each() -> Iterator[tuple[Schedule, Path]]:
        for schedule in schedules():
            folder = tmp_path / "folder"
            shutil.copytree(begun, folder)
            yield schedule, folder
            shutil.rmtree(folder)

    return each


Folders = Callable[[], Iterator[tuple[Schedule, Path]]]


def swapping(folder: Path, old: Catalogue, new: Catalogue, records: Sequence[RecordChange] = ()) -> Work:
    """Return what swaps, and returns the catalogue that it wrote."""

    def swap() -> Catalogue:
        finish(LmdbStore(folder).swap(old, new, records))
        return new

    return swap


def read(folder: Path) -> object:
    """Return the catalogue, or the error of reading it."""
    try:
        return CatalogueFile(folder).read(0.0)
    except StoreError as error:
        return error


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_swaps(folder: Path, processes: Sequence[Process]) -> None:
    """Of two swaps from one catalogue one was made, or perhaps none if one was killed."""
    catalogue = read(folder)
    calls = [process.calls for process in processes]
    outcomes = [outcome for process in processes for outcome in process.outcomes]
    swapped = [outcome for outcome in outcomes if isinstance(outcome, Catalogue)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Killed)]
    assert catalogue in (SECOND, ONES, OTHERS), (catalogue, calls)
    assert swapped == [catalogue] or (failed and not swapped), (catalogue, outcomes, calls)
    assert len(swapped) + len(failed) + sum(isinstance(outcome, ReleaseConflict) for outcome in outcomes) == 2, outcomes


def check_next_swap(folder: Path) -> None:
    """Another process swaps, whatever happened before, and leaves nothing behind."""
    catalogue = CatalogueFile(folder).read(0.0)
    later = grown(catalogue, "later")
    (process,) = run(Schedule(), [swapping(folder, catalogue, later)])
    assert (process.outcomes, read(folder)) == ([later], later)
    assert names(folder) - {"releases"} == {"catalogue.json", "catalogue.reserve", "catalogue.lock"}


@pytest.mark.parametrize(("switches", "kills"), [(2, 0), (0, 1), in_soak(None, 0), in_soak(2, 1)])
def test_one_of_two_swaps_succeeds_in_any_order_of_calls_and_after_a_kill(
    folders: Folders, switches: int | None, kills: int
) -> None:
    for schedule, folder in folders():
        works = [[swapping(folder, SECOND, new)] for new in (ONES, OTHERS)]
        check_swaps(folder, run(schedule, *works, switches=switches, kills=kills))
        check_next_swap(folder)


@pytest.mark.parametrize("switches", [2, in_soak(3)])
def test_reads_during_two_swaps_never_go_back(folders: Folders, switches: int) -> None:
    order: list[object] = [SECOND, ONES, THIRDS]
    for schedule, folder in folders():
        swaps = [swapping(folder, SECOND, ONES), swapping(folder, ONES, THIRDS)]
        swapper, reader = run(schedule, swaps, [lambda at=folder: read(at)] * 2, switches=switches)  # type: ignore[misc]
        assert [outcome for outcome in reader.outcomes if outcome not in order] == [], swapper.calls
        assert sorted(reader.outcomes, key=order.index) == reader.outcomes
        assert read(folder) == THIRDS


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_user_swaps_in_its_folder_after_root() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CatalogueFile(folder).swap(FIRST, lambda record: record is None)
        for path in (folder, folder / "catalogue.lock"):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
        try:
            CatalogueFile(folder).swap(SECOND, lambda record: record is not None)
        finally:
            os.seteuid(0)
        assert read(folder) == SECOND


@pytest.mark.parametrize("switches", [1, in_soak(2)])
def test_draft_created_during_a_catalogue_swap_does_not_affect_it(folders: Folders, switches: int) -> None:
    for schedule, folder in folders():
        (folder / "catalogue.reserve").unlink()  # as after a full disk
        create = [lambda at=folder: finish(LmdbStore(at).create(DRAFT, PLAN))]
        swapper, _ = run(schedule, [swapping(folder, SECOND, ONES)], create, switches=switches)
        assert read(folder) == ONES, swapper.calls


@pytest.mark.parametrize("switches", [0, in_soak(2)])
def test_catalogue_has_its_record_after_a_kill_at_any_call(folders: Folders, switches: int) -> None:
    written = {ONES.token: b"of one", OTHERS.token: b"of other"}
    kills = 0
    for schedule, folder in folders():
        records = {token: [RecordChange("record", None, after)] for token, after in written.items()}
        works = [[swapping(folder, SECOND, new, records[new.token])] for new in (ONES, OTHERS)]
        processes = run(schedule, *works, switches=switches, kills=1)
        kills += any(process.killed for process in processes)
        check_swaps(folder, processes)
        catalogue = CatalogueFile(folder).read(0.0)
        if catalogue != SECOND:
            assert CatalogueFile(folder).record("record") == written[catalogue.token], [
                process.calls for process in processes
            ]
    assert kills > 20
