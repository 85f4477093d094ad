"""Scratch folders: a living owner's is never touched, a killed one's is removed by the next."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hotplate.stores import folders
from hotplate.stores.folders import LOCK, marked, remove_abandoned, replace_durably, scratch_folder, take_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

OWNER = """
import sys, time
from pathlib import Path
from hotplate.stores.folders import scratch_folder
with scratch_folder(Path(sys.argv[1]), "lists-") as folder:
    (folder / "part").mkdir()
    (folder / "part" / "rows").write_text("some")
    print(folder, flush=True)
    time.sleep(600)
"""


@contextmanager
def owner(parent: Path) -> "Iterator[tuple[subprocess.Popen[str], Path]]":
    """Run a process that owns a folder in *parent*, and give both."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(parent)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_folder_of_a_killed_owner_is_removed_but_not_that_of_a_running_one(tmp_path: Path) -> None:
    with owner(tmp_path) as (killed, dead), owner(tmp_path) as (_, living):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert dead.exists()
        with scratch_folder(tmp_path, "lists-") as own:
            assert set(tmp_path.iterdir()) == {living, own}
            with scratch_folder(tmp_path, "lists-") as another:
                assert set(tmp_path.iterdir()) == {living, own, another}
        assert (living / "part" / "rows").read_text() == "some"
        assert set(tmp_path.iterdir()) == {living}


@pytest.mark.parametrize("has_lock", [False, True], ids=["before it looks for the lock", "after it found the lock"])
def test_folder_may_be_taken_for_abandoned_while_its_owner_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_lock: bool
) -> None:
    """Another process comes after the lock was removed, and before the folder is."""
    remove = Path.rmdir

    def other_first(folder: Path) -> None:
        monkeypatch.undo()
        if has_lock:
            os.close(take_lock(folder / LOCK, 0o600, 1.0))
        else:
            remove_abandoned(folder)
        remove(folder)

    with scratch_folder(tmp_path, "lists-"):
        monkeypatch.setattr(Path, "rmdir", other_first)
    for left in marked(tmp_path, "lists-"):
        remove_abandoned(left)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_removed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    with pytest.raises(PermissionError, match="lists-"), scratch_folder(tmp_path, "lists-"):
        monkeypatch.setattr(Path, "rmdir", refuse)


def test_folder_whose_content_cannot_be_removed_is_left_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use_folder() -> None:
        with scratch_folder(tmp_path, "lists-") as folder:
            (folder / "part").mkdir()
            monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)

    with pytest.raises(OSError, match=r"not empty: .*lists-"):
        use_folder()
    (left,) = marked(tmp_path, "lists-")
    monkeypatch.undo()
    remove_abandoned(left)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in ("lists-mine", "lists-", "lists-1-0123abcd.bak", "other-1-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK).touch()
    (tmp_path / "lists-3-0123abcd").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "lists-4-0123abcd").touch()
    before = set(tmp_path.iterdir())
    with scratch_folder(tmp_path, "lists-"):
        pass
    assert set(tmp_path.iterdir()) == before


def test_lock_of_a_removed_file_does_not_block_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.lock"
    first = take_lock(path, 0o600, 1.0)
    waiting = list[int]()
    thread = threading.Thread(target=lambda: waiting.append(take_lock(path, 0o600, 10.0)))
    thread.start()
    time.sleep(0.05)  # it waits for the first file
    second = take_lock(tmp_path / "new", 0o600, 1.0)
    (tmp_path / "new").replace(path)  # so the new file is held from the moment that it lies there
    os.close(first)
    thread.join(0.2)
    assert waiting == [], "two processes hold the lock of one path"
    os.close(second)
    thread.join()
    os.close(*waiting)


def test_replaced_file_keeps_its_mode_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    replace_durably(path, b"first", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    replace_durably(path, b"second")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"second", 0o640)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("may_set_group", [True, False])
def test_replaced_file_keeps_its_mode_and_group_if_its_owner_cannot_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, may_set_group: bool
) -> None:
    path = tmp_path / "record.json"
    replace_durably(path, b"first")
    path.chmod(0o600)
    group = path.stat().st_gid
    kept = list[int]()

    def refuse_another_owner(_: int, uid: int, gid: int) -> None:
        if uid != -1 or not may_set_group:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        kept.append(gid)

    monkeypatch.setattr(os, "fchown", refuse_another_owner)
    replace_durably(path, b"second")
    assert kept == [group] * may_set_group
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"second", 0o600)


def test_replacement_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    replace_durably(path, b"first")

    def lose_the_lock() -> None:
        raise OSError(errno.ESTALE, "its lock file was removed", "record.lock")

    with pytest.raises(OSError, match=r"removed: 'record\.lock'"):
        replace_durably(path, b"second", before_rename=lose_the_lock)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folders, "write_all", fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*record\.json'"):
        replace_durably(path, b"second")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"first", [path])


def test_failed_replacement_keeps_the_draft_of_the_next_owner_of_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    outcomes = list[Path]()

    def overtaken() -> None:
        (draft,) = tmp_path.iterdir()
        draft.unlink()
        draft.write_bytes(b"of the next owner")
        outcomes.append(draft)
        raise OSError(errno.ESTALE, "its lock file was removed")

    with pytest.raises(OSError, match="its lock file was removed"):
        replace_durably(path, b"ours", before_rename=overtaken)
    (draft,) = outcomes
    assert draft.read_bytes() == b"of the next owner"
