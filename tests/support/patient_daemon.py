"""For `spark.python.daemon.module`: the process from which executors fork those of Python, with patient stores."""

import runpy

from hotplate.base import http1
from tests.support import patience

patience.install(setattr)
http1.CONNECT_S = patience.LIMIT_S
runpy.run_module("pyspark.daemon", run_name="__main__", alter_sys=True)
