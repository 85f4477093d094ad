"""The embedded store, which one process writes: lists of executors come to it through the driver."""

from pathlib import Path

import pytest

from hotplate.offline.lists import ListSettings, ModelLists
from hotplate.offline.model import save
from hotplate.offline.publish import publish
from hotplate.offline.spark.publication import SparkLists
from hotplate.offline.spark.session import spark_session
from hotplate.stores.connect import connect
from tests.support.command import hotplate
from tests.support.interactions import checkerboard_model

pytestmark = pytest.mark.spark


async def test_files_are_written_through_a_local_driver(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    lists, store = ModelLists(checkerboard_model(40), ListSettings(length=10)), connect(url)
    with spark_session("local[2]") as session:
        await publish(SparkLists(lists, session, url), store)
    await store.close()
    found = hotplate("lookup", "n0", "--store", url)
    assert found.returncode == 0
    assert "in0 " in found.stdout


def test_executors_of_a_cluster_cannot_write_files_and_nothing_is_started_to_find_out(tmp_path: Path) -> None:
    save(checkerboard_model(40), tmp_path / "model")
    master = ("--master", "spark://nowhere:7077")
    refused = hotplate("publish", tmp_path / "model", "--store", f"file://{tmp_path / 'store'}", *master)
    assert refused.returncode == 2
    assert "written by one process on one machine" in refused.stderr
