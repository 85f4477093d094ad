"""Modules that the command loads, for the process from which `forked.py` forks it."""

import gc
from importlib import import_module

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
    # typer loads them when it reads the first argument.
    "pydantic.fields",
    "pydantic.functional_validators",
    "pydantic.type_adapter",
):
    import_module(_name)

# A collection in a forked process would copy the memory of all modules.
gc.freeze()
