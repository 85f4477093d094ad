"""Services and the memory that their files are in: warmed before they are ready, and locked on request."""

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.file.memory import check_lockable
from tests.support.page_cache import absent_pages, evict
from tests.support.service import LAUNCHER, publish_lists, running

LISTS = {f"user:{n:06}": b'[{"id":"%s"}]' % (b"x" * 400) for n in range(5000)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Publish a release, none of which is in memory, as after a reboot."""
    folder = tmp_path / "store"
    asyncio.run(publish_lists(folder, LISTS))
    evict(file_of(folder))
    return folder


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("releases/*.mdb")
    return path


def test_after_a_reboot_a_release_is_in_memory_before_the_service_is_ready(store: Path) -> None:
    assert absent_pages(file_of(store)) > 100
    evict(file_of(store))
    with running(store, "--workers", "2") as service:
        assert service.get("/readyz").status == 200
        assert absent_pages(file_of(store)) == 0
        assert service.get("/v1/recommendations/004711").json["source"] == "personal"


def test_what_is_served_is_locked_in_memory_on_request(store: Path) -> None:
    size = file_of(store).stat().st_size
    try:
        check_lockable(size, "the release")
    except StoreUnavailable as error:
        pytest.skip(str(error))
    with running(store, "--lock-memory") as service:
        (worker,) = service.workers()
        locked = Path(f"/proc/{worker}/status").read_text().partition("VmLck:")[2].split()
        assert int(locked[0]) * 1024 > size * 0.9
        assert service.states()[0]["status"] == "ready"


def test_a_service_that_may_not_lock_what_is_live_does_not_start(store: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    program = (
        "import resource, sys; from hotplate.stores.file import memory; memory._may_lock_all = lambda proc: False; "
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); sys.argv[0] = 'hotplate'; "
        "from hotplate.__main__ import main; main()"
    )
    options = ["serve", "--store", f"file://{store}", "--port", "0", "--admin-port", "0", "--health-port", "0"]
    options += ["--lock-memory"]
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, "ulimit -l" in done.stderr, "RLIMIT_MEMLOCK" in done.stderr) == (2, True, True)
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == hard


def test_only_files_can_be_locked(tmp_path: Path) -> None:
    command = [*LAUNCHER, "--store", "redis://127.0.0.1:1/0", "--lock-memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "--lock-memory is for file:// stores" in " ".join(done.stderr.split())
