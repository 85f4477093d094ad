"""`--resume` beside a lease that runs: it says what it waits for, and leaves a draft alone whose writer lives."""

import asyncio
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from tests.support.stores import lapse

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'store'}"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url(prefix=secrets.token_hex(4))


def resume(url: str, release: str, folder: Path) -> subprocess.Popen[str]:
    lists = folder / "lists.csv"
    lists.write_text("user,item,score\nal,a,0.5\nbo,b,0.5\n")
    command = [sys.executable, "-m", "hotplate", "import", str(lists), "--store", url, "--resume", release]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def first_line(resumed: subprocess.Popen[str]) -> str:
    assert resumed.stderr is not None
    return await asyncio.to_thread(resumed.stderr.readline)


async def test_a_resume_says_that_it_waits_for_a_lease_and_goes_on_once_that_has_lapsed(
    url: str, tmp_path: Path
) -> None:
    store = connect(url)
    draft = await life.begin(store, ReleaseId("20261120T064200Z-7f3a"))
    resumed = resume(url, draft.id, tmp_path)
    waiting = f"hotplate: release {draft.id} has a writer; if that is gone, its lease lapses in "
    assert (await first_line(resumed)).startswith(waiting)
    assert (await store.catalogue()).find_draft(draft.id).writer == draft.writer
    await lapse(store)
    _, said = await asyncio.to_thread(resumed.communicate, timeout=60)
    assert (resumed.returncode, said) == (0, "")
    assert (await store.catalogue()).live == draft.id
    await store.close()
