"""The tests of Spark need Java and packages that only `make spark-test` installs; other verbs ignore this folder."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.support.paths import ROOT

collect_ignore_glob = [] if find_spec("pyspark") and shutil.which("java") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def patient_executors() -> Iterator[None]:
    """Stores of executors, which are other processes, wait long for replies, as those of the fixture `patience`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv(
            "PYSPARK_SUBMIT_ARGS", "--conf spark.python.daemon.module=tests.support.patient_daemon pyspark-shell"
        )
        yield
