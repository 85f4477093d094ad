"""The tests of Spark need Java and packages of their own, which `make spark-test` brings; other verbs pass them by."""

import shutil
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("pyspark") and shutil.which("java") else ["test_*.py"]
