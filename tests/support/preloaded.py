"""Modules that the command loads, for the process from which `forked.py` forks it."""

import gc
from importlib import import_module

from hotplate.serve.processes import worker

for _name in (
    "hotplate.bench.cosmos_emulator.server",
    "hotplate.cli.bench",
    "hotplate.cli.main",
    "hotplate.cli.serve",
    "hotplate.offline.job",
    "hotplate.offline.publish",
    "hotplate.serve.processes.supervisor",
    "hotplate.stores.file.store",
    "hotplate.stores.redis.store",
):
    import_module(_name)

# The first read of a release may take longer than 2 s on a busy machine, after which a worker would answer without one.
worker.FIRST_READ_S = 60.0  # type: ignore[attr-defined]  # it is of another module

# A collection in a forked process would copy the memory of all modules.
gc.freeze()
