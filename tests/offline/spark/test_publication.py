"""Lists computed and written by executors, here separate processes, some of which are killed."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from hotplate.offline import lists as offline_lists
from hotplate.offline import spark as offline_spark
from hotplate.offline.lists import Block, ListSettings, ModelLists
from hotplate.offline.model import Model
from hotplate.offline.model_folder import save
from hotplate.offline.options import PublishSettings
from hotplate.offline.publish import publish_source
from hotplate.offline.spark import SparkLists
from hotplate.offline.train.spark import spark_session
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import ChargeCounter, Row
from tests.support import patience
from tests.support.cosmos_account import Account
from tests.support.processes import run_process
from tests.support.redis_server import RedisServer
from tests.support.spark import assert_same_lists, bodies_as_lists, model_of
from tests.support.stores import lapse, published_rows
from tests.support.waiting import until_true

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("patience")]
USERS = 6_000
# Runs a command whose publish never ends by itself.
WAITS_TO_BE_KILLED = f"""
import asyncio
from hotplate.__main__ import main
from hotplate.offline.spark import SparkLists
{patience.INSTALL}
write_parts = SparkLists.write_parts

async def write_and_wait(*arguments, **named):
    await write_parts(*arguments, **named)
    await asyncio.Event().wait()

SparkLists.write_parts = write_and_wait
main()
"""
# Kills Java while it writes the parts of a publish to a URL; prints the error of the publish.
FAILS_WITHOUT_JAVA = """
import asyncio
import sys
from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.publish import publish_source
from hotplate.offline.spark import SparkLists
from hotplate.offline.train.spark import spark_session
from hotplate.stores.connect import connect
from tests.support.spark import kill_java, model_of

def fail(done, total):
    kill_java()
    raise KeyError("the caller's own")

class FailingLists(SparkLists):
    async def write_parts(self, context, lists, observer, on_progress):
        return await super().write_parts(context, lists, observer, fail)

with spark_session("local[1]") as session:
    source = FailingLists(ModelLists.of(model_of(3_000), ListSettings(length=10)), session, sys.argv[1])
    try:
        asyncio.run(publish_source(source, connect(sys.argv[1])))
    except KeyError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    with spark_session("local-cluster[2,1,1024]") as opened:
        yield opened


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url(prefix=secrets.token_hex(4))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_lists, "_LEAST_IN_BLOCK", 100)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file for which executors wait before the last block of USERS, so that this process sees them write the others.

    They are sent the function below as it is, because they cannot import it.
    """
    release = tmp_path / "released"
    write_blocks = offline_spark._write_blocks

    def write_when_released(job: Any, progress: Any, blocks: Iterable[Block]) -> Iterator[Any]:  # noqa: ANN401 -- unchanged
        for block in blocks:
            while block.stop == USERS and not release.exists():
                time.sleep(0.02)
            yield from write_blocks(job, progress, [block])

    monkeypatch.setattr(offline_spark, "_write_blocks", write_when_released)
    yield release
    release.touch()


def lists_of(model: Model) -> ModelLists:
    return ModelLists.of(model, ListSettings(length=10))


def rows_here(model: Model) -> list[Row]:
    """Return the rows published without Spark, in the order of a scan."""
    return bodies_as_lists(row for batch in lists_of(model).batches() for row in batch)


def executors(session: SparkSession) -> list[int]:
    """Return the processes of the executors of a session on this machine."""
    application = session.sparkContext.applicationId
    processes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if "org.apache.spark.executor.CoarseGrainedExecutorBackend" in words and application in words:
                processes.append(int(folder.name))
    return processes


def kill_driver(command: list[str], server: RedisServer, rows: int) -> None:
    """Run a publish, and kill its driver with all executors once the server has this many more rows."""
    before = int(server.execute_command("DBSIZE"))
    driver = subprocess.Popen([sys.executable, "-c", WAITS_TO_BE_KILLED, *command], start_new_session=True)
    try:
        while int(server.execute_command("DBSIZE")) < before + rows:
            assert driver.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


@pytest.mark.usefixtures("small_blocks")
async def test_a_lost_executors_part_is_written_again(session: SparkSession, url: str, released: Path) -> None:
    model = model_of(USERS)
    store = connect(url)
    killed = list[int]()

    def kill_one(done: int, total: int) -> None:
        if 200 < done < total and not killed:
            killed.extend(executors(session)[:1])
            os.kill(killed[0], signal.SIGKILL)
            released.touch()

    source = SparkLists(lists_of(model), session, url)
    result = (await publish_source(source, store, PublishSettings("json"), on_progress=kill_one)).result
    assert killed
    assert killed[0] not in executors(session)
    assert_same_lists(await published_rows(store, result.manifest.release), rows_here(model))
    await store.close()


@pytest.mark.usefixtures("small_blocks")
async def test_a_failed_publish_leaves_other_jobs_of_its_session_running(
    session: SparkSession, url: str, released: Path, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    publish_failed = tmp_path / "publish failed"

    def wait(number: int) -> int:
        started.touch()
        while not publish_failed.exists():
            time.sleep(0.05)
        return number

    def fail(done: int, total: int) -> None:
        if 200 < done < total:
            raise KeyError

    other = asyncio.create_task(asyncio.to_thread(session.sparkContext.parallelize([7], 1).map(wait).collect))
    await until_true(started.exists)
    store = connect(url)
    source = SparkLists(lists_of(model_of(USERS)), session, url)
    with pytest.raises(KeyError):
        await publish_source(source, store, PublishSettings("json"), on_progress=fail)
    publish_failed.touch()
    released.touch()
    assert await other == [7]
    await store.close()


def test_publish_raises_its_own_error_if_java_has_ended_as_well(url: str) -> None:
    program = [sys.executable, "-c", FAILS_WITHOUT_JAVA, url]
    done = run_process(*program, timeout=300)
    assert done.stdout == '"the caller\'s own"\n'


async def test_executors_that_cannot_reach_the_store_leave_a_draft_to_resume(session: SparkSession, url: str) -> None:
    store = connect(url)
    model = model_of(1_000)
    nowhere = SparkLists(lists_of(model), session, "redis://127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable, match="--resume"):
        await publish_source(nowhere, store, PublishSettings("zstd"))
    (draft,) = (await store.catalogue()).releases
    written = await publish_source(
        SparkLists(lists_of(model), session, url), store, PublishSettings("zstd", resume=draft.id)
    )
    assert written.result.skipped > 0
    assert (await store.catalogue()).live == draft.id
    await store.close()


async def test_rerun_after_a_killed_driver_writes_nothing_twice(
    session: SparkSession, redis_server: RedisServer, url: str, tmp_path: Path
) -> None:
    model = model_of(20_000)
    store = connect(url)
    live = (await publish_source(lists_of(model_of(10)), store, PublishSettings("json"))).result
    save(model, tmp_path / "model")
    command = ["publish", str(tmp_path / "model"), "--store", url, "--master", "local[2]", "--list-length", "10"]
    await asyncio.to_thread(kill_driver, [*command, "--encoding", "json"], redis_server, 4_000)
    catalogue = await store.catalogue()
    assert catalogue.live == live.manifest.release
    (draft,) = (release.id for release in catalogue.releases if release.id != catalogue.live)
    await lapse(store)
    again = await publish_source(
        SparkLists(lists_of(model), session, url), store, PublishSettings("json", resume=draft)
    )
    assert again.result.skipped >= 2_000
    assert (await store.catalogue()).live == draft
    assert_same_lists(await published_rows(store, draft), rows_here(model))
    await store.close()


@pytest.mark.usefixtures("small_blocks")
async def test_executors_write_cosmos_and_charges_are_counted(session: SparkSession, cosmos_http: Account) -> None:
    model = model_of(300)
    url = cosmos_http.url(secrets.token_hex(4), ru="30000")
    charged = ChargeCounter()
    store = connect(url)
    source = SparkLists(lists_of(model), session, url)
    result = (await publish_source(source, store, PublishSettings("json"), observer=charged)).result
    assert_same_lists(await published_rows(store, result.manifest.release), rows_here(model))
    assert charged.ru > 5 * result.rows
    await store.close()
