"""ALS on Spark: lists on a checkerboard, the objective compared with implicit's, and the command."""

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.model_folder import load, save
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.engine import fit
from hotplate.offline.train.spark import cause_of, check_master, spark_session
from tests.support.command import hotplate
from tests.support.interactions import checkerboard, checkerboard_model
from tests.support.paths import ROOT
from tests.support.processes import run_process

pytestmark = pytest.mark.spark
SIZE = 50
# Prints the cause of a Java exception whose Java has ended since, and errors of `fit` and of a session without Java.
KILLS_JAVA = """
from py4j.protocol import Py4JJavaError
from hotplate.offline.errors import DataError
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.spark import cause_of, fit, spark_session
from tests.support.interactions import checkerboard
from tests.support.spark import kill_java

try:
    with spark_session("local[1]") as session:
        try:
            session.sparkContext.textFile("/nowhere").count()
        except Py4JJavaError as error:
            java_error = error
        kill_java()
        print(cause_of(java_error))
        try:
            fit(checkerboard(4), SparkParams(factors=2))
        except DataError as error:
            print(error)
        session.range(3).count()
except DataError as error:
    print(error)
"""
# Prints errors of `fit`, whose first call looks up a class, and of a new session, both after the end of Java.
LOSES_JAVA = """
from hotplate.offline.errors import DataError
from hotplate.offline.train.als import SparkParams
from hotplate.offline.train.spark import fit, spark_session
from tests.support.interactions import checkerboard
from tests.support.spark import kill_java

for _ in range(2):
    try:
        with spark_session("local[1]"):
            kill_java()
            fit(checkerboard(4), SparkParams(factors=2))
    except DataError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    with spark_session("local[2]") as opened:
        yield opened


@pytest.mark.usefixtures("session")
def test_each_user_of_a_checkerboard_is_recommended_the_item_withheld() -> None:
    board = checkerboard(SIZE)
    users = np.arange(SIZE, dtype=np.int32)
    params = SparkParams(factors=3, reg_param=0.01, alpha=2.0, iterations=8, seed=23)
    ranker = fit(board, params)
    items, scores = ranker.recommend(board, users, 1)
    assert items[:, 0].tolist() == list(range(SIZE))
    assert (scores > 0).all()
    assert (fit(board, params).recommend(board, users, 5)[0] == ranker.recommend(board, users, 5)[0]).all()


def test_a_session_of_another_thread_is_used_and_not_stopped(session: SparkSession) -> None:
    def opened_id() -> str:
        with spark_session("local[1]") as opened:
            application: str = opened.sparkContext.applicationId
            return application

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(opened_id).result() == session.sparkContext.applicationId
    assert session.range(3).count() == 3


def test_an_active_session_is_used_and_not_stopped(session: SparkSession) -> None:
    with spark_session("local[1]") as opened:
        assert opened.sparkContext.applicationId == session.sparkContext.applicationId
    with pytest.raises(KeyError), spark_session("local[1]"):
        raise KeyError
    assert session.range(3).count() == 3


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("iterations", [15, 40])
def test_many_iterations_end_with_finite_factors(iterations: int) -> None:
    board = checkerboard(SIZE)
    users = np.arange(SIZE, dtype=np.int32)
    ranker = fit(board, SparkParams(factors=3, reg_param=0.01, alpha=2.0, iterations=iterations))
    assert ranker.recommend(board, users, 1)[0][:, 0].tolist() == list(range(SIZE))


def test_without_checkpoints_the_error_names_the_setting_for_them(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\n".join(["user,item", *checkerboard_lines(12)]))
    command = ["train", str(tmp_path / "log.csv"), "--engine", "spark", "--master", "local[2]", "--split", "none"]
    command += ["--params", "factors=3,iterations=60", "--out", str(tmp_path / "model")]
    program = (
        "from hotplate.offline.train import spark; spark._CHECKPOINT_INTERVAL = -1; "
        "import hotplate.__main__ as m; m.main()"
    )
    done = run_process(sys.executable, "-c", program, *command, code=1, timeout=500)
    assert "Spark could not learn" in done.stderr
    assert "set spark.checkpoint.dir" in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "text",
    ["Job 42 cancelled because SparkContext was shut down", "Cannot call methods on a stopped SparkContext"],
)
def test_ended_spark_context_is_explained_with_the_setting(text: str) -> None:
    cause = cause_of(PySparkException(text))
    assert f"({text})" in cause
    assert "set spark.checkpoint.dir" in cause


def test_connection_that_breaks_during_a_call_is_explained_with_the_setting() -> None:
    cause = cause_of(Py4JError("An error occurred while calling o42.fit"))
    assert "its Java process has ended (An error occurred while calling o42.fit)" in cause
    assert "set spark.checkpoint.dir" in cause


def test_java_that_was_killed_is_explained_with_the_setting() -> None:
    done = run_process(sys.executable, "-c", KILLS_JAVA, timeout=300)
    late, fitting, session = done.stdout.splitlines()
    assert "its Java process has ended" in late
    assert "set spark.checkpoint.dir" in late
    assert fitting.startswith("Spark could not learn: its Java process has ended")
    assert session.startswith("Spark failed: its Java process has ended")


def test_java_that_ended_before_a_class_is_looked_up_is_explained_with_the_setting() -> None:
    done = run_process(sys.executable, "-c", LOSES_JAVA, timeout=300)
    fitting, starting = done.stdout.splitlines()
    assert fitting.startswith("Spark could not learn: its Java process has ended")
    assert "set spark.checkpoint.dir" in fitting
    assert starting.startswith("Spark cannot be started on local[1]: its Java process has ended")


@pytest.mark.usefixtures("session")
def test_java_that_ends_right_after_its_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    def refuse_from_now_on(_: SparkContext) -> None:
        monkeypatch.setattr(SparkSession, "getActiveSession", refuse)
        refuse()

    monkeypatch.setattr(SparkContext, "getCheckpointDir", refuse_from_now_on)
    with pytest.raises(DataError, match="Spark failed: its Java process has ended"), spark_session("local[1]"):
        pass


@pytest.mark.usefixtures("session")
def test_broken_connection_of_something_else_is_not_taken_for_the_end_of_java() -> None:
    with pytest.raises(BrokenPipeError), spark_session("local[1]"):
        raise BrokenPipeError


@pytest.mark.parametrize(
    "error",
    [
        "An error occurred while calling o42.fit. Trace:\nMethod fit([]) does not exist\n",
        "org.apache.spark.api.python.PythonUtils.getEncryptionEnabled does not exist in the JVM",
    ],
)
def test_error_of_a_java_that_answers_is_not_taken_for_its_end(error: str) -> None:
    assert "has ended" not in cause_of(Py4JError(error))


def checkerboard_lines(size: int) -> list[str]:
    """Return rows of user and item: users have the other items of their parity."""
    return [
        f"u{user},i{item}" for user in range(size) for item in range(size) if (user - item) % 2 == 0 and user != item
    ]


def test_command_under_spark_submit_writes_an_ordinary_model(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\n".join(["user,item", *checkerboard_lines(30)]))
    submit = shutil.which("spark-submit", path=str(Path(sys.executable).parent))
    assert submit is not None
    command = [submit, "--master", "local[2]", str(ROOT / "hotplate" / "spark.py"), "train", str(tmp_path / "log.csv")]
    command += ["--engine", "spark", "--params", "factors=3", "--out", str(tmp_path / "model")]
    done = run_process(*command, timeout=300)
    assert "by-item split" in done.stdout
    model = load(tmp_path / "model")
    assert model.params == SparkParams(factors=3, iterations=15)
    assert model.evaluation is not None
    assert model.evaluation.baselines.keys() == {"popularity", "neighbours"}


def test_master_is_given_or_of_spark_submit() -> None:
    for master in (None, "submitted"):
        with pytest.raises(SettingError, match="spark-submit"):
            check_master(master, {})
    assert check_master(None, {"PYSPARK_GATEWAY_PORT": "1"}) == "submitted"


def test_file_store_publish_to_a_cluster_fails_before_starting_spark(tmp_path: Path) -> None:
    save(checkerboard_model(40), tmp_path / "model")
    master = ("--master", "spark://nowhere:7077")
    refused = hotplate("publish", tmp_path / "model", "--store", f"file://{tmp_path}/store", *master)
    assert refused.returncode == 2
    assert "written by one process, so Spark" in refused.stderr
