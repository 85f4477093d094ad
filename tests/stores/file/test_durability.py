"""A power failure loses no release: each new name is flushed to the disk before a record relies on it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.file.backup import backup, restore
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Plan
from hotplate.stores.users import erase_users
from tests.support.stores import FIRST, LISTS, as_bodies, begin_draft, draft_of, publish


class Disk:
    """What a power failure would lose: new names in folders, and files, that were not flushed since."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.unflushed = set[Path]()
        self.lost_by_swap = list[set[Path]]()
        """What a power failure would lose just before each rename of a catalogue."""
        self._patch = patch
        self._wrap("mkdir", lambda path, *_: self._add(path))
        self._wrap("rename", self._rename)
        self._wrap("fsync", self._flush)

    def _wrap(self, name: str, note: Callable[..., None]) -> None:
        call = getattr(os, name)

        def noted(*arguments: Any, **named: Any) -> object:  # noqa: ANN401 -- those of the call
            if name == "rename" and Path(arguments[1]).name == "catalogue.json":
                self.lost_by_swap.append(self.lost())
            result = call(*arguments, **named)
            note(*arguments)
            return result

        self._patch.setattr(os, name, noted)

    def _add(self, path: str | Path) -> None:
        self.unflushed.add(Path(path))

    def _rename(self, source: str | Path, target: str | Path) -> None:
        moved = {path for path in self.unflushed if Path(source) in (path, *path.parents)}
        self.unflushed -= moved
        self.unflushed |= {Path(target) / path.relative_to(source) for path in moved}
        self._add(target)

    def _flush(self, descriptor: int) -> None:
        flushed = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.unflushed -= {path for path in self.unflushed if path.parent == flushed}

    def lost(self) -> set[Path]:
        """Return what a power failure would lose now."""
        return {path for path in self.unflushed if path.exists()}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_release_in_a_new_folder_survives_a_power_failure(tmp_path: Path, disk: Disk) -> None:
    store = LmdbStore(tmp_path / "var" / "lib" / "store")
    await publish(store)
    assert disk.lost() == set()
    await erase_users(store, ["1"])
    assert disk.lost() == set()
    assert [path.name for lost in disk.lost_by_swap for path in lost if path.suffix] == []
    await store.close()


async def test_lock_of_a_draft_is_durable_before_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = list[str]()
    flush = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert not list(tmp_path.rglob("*.draft"))
        flushed.append(path.suffix or path.name)
        flush(descriptor)

    store = LmdbStore(tmp_path)
    await begin_draft(store, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note)
        await store.create(draft_of(FIRST), Plan(10, 1000))
    assert flushed[-2:] == [".lock", "releases"]
    await store.close()


async def test_backup_and_restore_survive_a_power_failure(tmp_path: Path, disk: Disk) -> None:
    store = LmdbStore(tmp_path / "store")
    await publish(store)
    await erase_users(store, ["1"])
    await backup(store, tmp_path / "backups" / "of" / "monday")
    assert disk.lost() == set()
    disk.lost_by_swap.clear()
    await restore(tmp_path / "backups" / "of" / "monday", LmdbStore(tmp_path / "new" / "store"))
    assert disk.lost() == set()
    assert [path.name for lost in disk.lost_by_swap for path in lost if path.suffix] == []
    await store.close()


async def test_repeated_seal_flushes_a_rename_that_could_not_be_flushed(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbStore(tmp_path)
    await store.create(draft_of(FIRST), Plan(10, 1000))
    await store.put(draft_of(FIRST), as_bodies(LISTS))
    with monkeypatch.context() as patch:
        flush = os.fsync

        def fail_in_folder(descriptor: int) -> None:
            if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path / "releases":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            flush(descriptor)

        patch.setattr(os, "fsync", fail_in_folder)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="Input/output error"):
                await store.seal(draft_of(FIRST))
    await store.seal(draft_of(FIRST))
    assert disk.lost() == set()
    await store.close()
