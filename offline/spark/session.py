"""The Spark session of a command."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from hotplate.offline.errors import DataError, SettingError
from hotplate.stores.file.memory import room_bytes

# Stands for the master given to `spark-submit`.
SUBMITTED = "submitted"
# Set by `spark-submit` and `pyspark`.
_GATEWAY = "PYSPARK_GATEWAY_PORT"
# Spark's default, 1 GB, cannot hold a few million pairs twice.
_DRIVER_SHARE = 0.4
# Keeps local sessions off the network.
_LOOPBACK = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}


def check_master(master: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return *master*, by default that of `spark-submit`; raises SettingError."""
    master = master or SUBMITTED
    if master == SUBMITTED and _GATEWAY not in environment:
        raise SettingError(
            "Spark needs a master; give --master local[2], spark://HOST:7077, yarn or k8s://URL, or start the command "
            "with spark-submit."
        )
    return master


@contextmanager
def spark_session(master: str | None) -> Iterator[SparkSession]:
    """Yield a session with the settings of `spark-defaults.conf` and `spark-submit`.

    Raises SettingError without a master, DataError if Spark cannot start, as for lack of Java.
    """
    chosen = check_master(master)
    builder = SparkSession.builder.appName("hotplate").config("spark.ui.showConsoleProgress", "false")
    if chosen != SUBMITTED:
        builder = builder.master(chosen).config("spark.log.level", "ERROR")
    if chosen.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        for name, value in _LOOPBACK.items():
            os.environ.setdefault(name, value)
        builder = builder.config("spark.ui.enabled", "false")
        memory = max(1, int(room_bytes() * _DRIVER_SHARE / 2**30))
        builder = builder.config("spark.driver.memory", f"{memory}g")
    try:
        session = builder.getOrCreate()
    except (Py4JError, PySparkException) as error:
        raise DataError(f"Spark cannot be started on {chosen}: {cause_of(error)}.") from error
    try:
        yield session
    finally:
        session.stop()


def cause_of(error: Exception) -> str:
    """Return the first line of the error, or of its Java exception."""
    text = str(error)
    if isinstance(error, Py4JJavaError):
        text = str(error.java_exception.getMessage() or error.java_exception)
    return text.strip().partition("\n")[0].rstrip(".")
