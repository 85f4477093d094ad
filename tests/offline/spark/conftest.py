"""The tests of Spark need Java and packages that only `make spark-test` installs; other verbs ignore this folder."""

import shutil
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("pyspark") and shutil.which("java") else ["test_*.py"]
