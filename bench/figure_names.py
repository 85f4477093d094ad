"""How reports are read from files, with the names by which other commands find figures and subjects in them.

Names are part of the file format: headings and sentences may be reworded, names stay, or old reports cannot be read.
"""

import json
from pathlib import Path

from hotplate.base.report import Report, from_json
from hotplate.bench.errors import BenchMisused
from hotplate.stores.errors import reason_of

# Of all experiments.
P50 = "p50"
P99 = "p99"
P99_9 = "p99.9"
POPULAR_LISTS = "popular lists"
AT_LEAST = "at least"  # note of a lower bound

# Of `bench http`.
RATE = "rate"
LATENESS = "delay of the generator, p99"

# Of `bench stores`, whose subjects begin with the kind of store, and end with the client unless it is ours.
FILES = "files"
REDIS = "Redis"
COSMOS_DB = "Cosmos DB"
COSMOS_EMULATOR = "Cosmos emulator"
BY_REDIS_PY = " by redis-py"
BY_SDK = " by SDK"

# Of `bench ru`.
PROVISIONED = "RU/s provisioned"
READS = "reads/s"
EMULATOR = "emulator"  # what was measured without an account
LEVEL_UNIT = " RU/s"  # of a subject, as "4,000 RU/s"


def read_report(path: Path) -> Report:
    """Read the report of an experiment. Raises BenchMisused for a missing file, or another one."""
    try:
        return from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise BenchMisused(f"{path}: {error.strerror}; give the NAME.json that `hotplate bench` writes") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BenchMisused(
            f"{path} is not a report of `hotplate bench`, which writes it to NAME.json: {reason_of(error)}"
        ) from error
