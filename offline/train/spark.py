"""ALS on Apache Spark, and the session of a command; needs the extra `spark`."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError
from pyspark.errors import PySparkException, PySparkRuntimeError
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.pairs import Floats, UserItems, check_user_items, row_of_each_pair
from hotplate.offline.train.als import Factors, SparkParams, confidences
from hotplate.stores.folders import room_bytes

# Stands for the master given to `spark-submit`.
SUBMITTED = "submitted"
# Set by `spark-submit` and `pyspark`.
_GATEWAY = "PYSPARK_GATEWAY_PORT"
# Spark's default, 1 GB, cannot hold a few million pairs.
_DRIVER_MEMORY_SHARE = 0.4
# Keeps local sessions off the network.
_LOOPBACK_SETTINGS = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
# Initial factors are drawn by block. The number of blocks depends on the data alone, so executors change only the
# order of sums.
_PAIRS_PER_BLOCK = 500_000
_BLOCKS_RANGE = (2, 1000)
# Iterations between checkpoints. Without, tasks carry the lineage of all iterations, and overflow Java's stack after
# about 15.
_CHECKPOINT_INTERVAL = 5
_OVERFLOW = "StackOverflowError"
# A context that has ended: to jobs that it ran, and to later calls.
_CONTEXT_ENDED = "SparkContext was shut down", "stopped SparkContext"
_MORE_STACK = (
    "on a cluster, set spark.checkpoint.dir to a folder that all of its machines reach, or give driver and executors a "
    "larger stack (-Xss16m)"
)


def check_master(master: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return *master*, by default that of `spark-submit`; raises SettingError."""
    master = master or SUBMITTED
    if master == SUBMITTED and _GATEWAY not in environment:
        raise SettingError(
            "Spark needs a master; give --master local[2], spark://HOST:7077, yarn or k8s://URL, or use spark-submit."
        )
    return master


@contextmanager
def spark_session(master: str | None) -> Iterator[SparkSession]:
    """Yield a Spark session on *master*, an address such as `local[4]`, and stop it at the end if this call started it.

    It has the settings of `spark-defaults.conf` and `spark-submit`. A local session runs on the loopback interface,
    takes a share of the free memory, and has a temporary folder for checkpoints; a cluster takes one from
    `spark.checkpoint.dir`, which all of its machines reach. Raises SettingError without a master, DataError if Spark
    cannot start, or if its Java process ends.
    """
    chosen = check_master(master)
    builder = _session_builder(chosen)
    try:
        is_ours = not _has_session()
        session = builder.getOrCreate()
    except (Py4JError, PySparkException, ConnectionError) as error:
        raise DataError(f"Spark cannot be started on {chosen}: {cause_of(error)}.") from error

    with tempfile.TemporaryDirectory(prefix="hotplate-spark-", ignore_cleanup_errors=True) as checkpoints:
        try:
            context = session.sparkContext
            if context.master.startswith("local") and context.getCheckpointDir() is None:
                context.setCheckpointDir(checkpoints)
            yield session
        except (Py4JError, PySparkException, ConnectionError) as error:
            if isinstance(error, ConnectionError) and _is_answering():
                raise  # from a connection of the caller, not to Java
            raise DataError(f"Spark failed: {cause_of(error)}.") from error
        finally:
            with suppress(Py4JError, ConnectionError):  # Java or its context has ended; what failed says so
                if is_ours:
                    session.stop()


def _has_session() -> bool:
    """Return whether this process has a session, of any thread."""
    try:
        SparkSession.active()
    except PySparkRuntimeError:
        return False
    return True


def _session_builder(master: str) -> SparkSession.Builder:
    """Return a builder of a session on *master*; one for a local session is given its interface and its memory."""
    builder: SparkSession.Builder = SparkSession.builder.appName("hotplate").config(
        "spark.ui.showConsoleProgress", "false"
    )
    if master != SUBMITTED:
        builder = builder.master(master).config("spark.log.level", "ERROR")

    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        for name, value in _LOOPBACK_SETTINGS.items():
            os.environ.setdefault(name, value)
        builder = builder.config("spark.ui.enabled", "false")
        memory = max(1, int(room_bytes() * _DRIVER_MEMORY_SHARE / 2**30))
        builder = builder.config("spark.driver.memory", f"{memory}g")

    return builder


def cause_of(error: Exception) -> str:
    """Return the first line of *error*, or of its Java exception; if Java has ended or its stack overflowed, advice.

    A stack that overflows also ends Spark's context, and then Java, so any of the three may be reported first.
    """
    try:
        text = _message(error)
        has_ended = _is_connection_error(error) or not _is_answering()
    except (Py4JError, ConnectionError) as failed:  # the message is requested from Java
        text = failed.errmsg if isinstance(failed, Py4JJavaError) else str(failed)
        has_ended = True

    if has_ended or any(ended in text for ended in _CONTEXT_ENDED):
        return f"its Java process has ended ({_first_line(text)}), perhaps for lack of memory or stack; {_MORE_STACK}"
    if _OVERFLOW in text:
        return (
            f"Java's stack overflowed ({_OVERFLOW}), as tasks carry all iterations without a checkpoint; {_MORE_STACK}"
        )
    return _first_line(text)


def _message(error: Exception) -> str:
    """Return the text of *error* or of its Java exception; raises Py4JError or ConnectionError if Java has ended."""
    if isinstance(error, Py4JJavaError):
        return str(error.java_exception.getMessage() or error.java_exception)
    return str(error)


def _is_connection_error(error: Exception) -> bool:
    """Return whether Java could not be reached.

    If a connection breaks during a call, Py4J raises a plain Py4JError that says so without a trace of Java.
    """
    if isinstance(error, Py4JNetworkError | ConnectionError):
        return True
    if type(error) is not Py4JError:
        return False
    text = str(error)
    return text.startswith("An error occurred while calling") and "Trace:" not in text


def _is_answering() -> bool:
    """Return whether Java answers, if this process has a session.

    If a connection breaks while a class is looked up, Py4J says that the class does not exist.
    """
    try:
        SparkSession.getActiveSession()
    except (Py4JError, ConnectionError):
        return False
    return True


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(".")


def fit(user_items: UserItems, params: SparkParams, on_iteration: Callable[[int, int], None] | None = None) -> Factors:
    """Fit factors of users and items to *user_items* in the active Spark session; the product of two is a score.

    *user_items* is a float32 csr_matrix [users, items], canonical, positive. The user factors are those that fit the
    final item factors best. *on_iteration* is called with the iterations done and their total, once, at the end. Raises
    DataError for an invalid matrix, for factors that are not finite, and if Spark fails.
    """
    check_user_items(user_items)

    blocks = int(np.clip(user_items.nnz // _PAIRS_PER_BLOCK, *_BLOCKS_RANGE))
    try:
        session = SparkSession.builder.getOrCreate()
        solver = ALS(
            rank=params.factors,
            maxIter=params.iterations,
            regParam=params.reg_param,
            implicitPrefs=True,
            alpha=1.0,
            seed=params.seed,
            numUserBlocks=blocks,
            numItemBlocks=blocks,
            checkpointInterval=_CHECKPOINT_INTERVAL,
            userCol="user",
            itemCol="item",
            ratingCol="rating",
        )
        model = solver.fit(session.createDataFrame(_rating_table(user_items, params)))
        users, items = user_items.shape
        user_factors = _collect_factors(model.userFactors, users, params)
        item_factors = _collect_factors(model.itemFactors, items, params)
    except (Py4JError, PySparkException, ConnectionError) as error:
        raise DataError(f"Spark could not learn: {cause_of(error)}.") from error

    if not (np.isfinite(user_factors).all() and np.isfinite(item_factors).all()):
        raise DataError(
            f"The factors are not finite with reg_param {params.reg_param} and alpha {params.alpha}; raise reg_param."
        )

    if on_iteration is not None:
        on_iteration(params.iterations, params.iterations)
    return Factors(user_factors, item_factors, params)


def _rating_table(user_items: UserItems, params: SparkParams) -> pa.Table:
    """Return confidences less one, which Spark adds."""
    users = row_of_each_pair(user_items).astype(np.int32)
    ratings = confidences(user_items.data, params.alpha) - np.float32(1)
    return pa.table({"user": users, "item": user_items.indices.astype(np.int32), "rating": ratings})


def _collect_factors(frame: DataFrame, count: int, params: SparkParams) -> Floats:
    """Return the factors of *count* users or items, the rows [id, features] of *frame*, as an array [count, factors].

    An id that Spark has no factors for, as it has no pairs, gets zeros.
    """
    factors = np.zeros((count, params.factors), dtype=np.float32)
    for batch in frame.toArrow().to_batches():
        rows = batch.column("features").flatten().to_numpy().reshape(-1, params.factors)
        factors[batch.column("id").to_numpy()] = rows
    return factors
