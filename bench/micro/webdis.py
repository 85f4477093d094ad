"""The other way from HTTP to Redis: webdis, a server in C that answers `GET /GET/KEY` with what lies under the key."""

import json
import shutil
from pathlib import Path

BINARY = "webdis"
MISSING = "no webdis on the PATH; on Debian or Ubuntu: apt-get install webdis"


def installed() -> bool:
    """Tell whether it is there."""
    return shutil.which(BINARY) is not None


def command(folder: Path, port: int, redis_port: int) -> list[str]:
    """Write its settings into *folder* and return how to start it: on loopback, in the foreground, with one thread.

    It gets one core, on which further threads would only take turns.
    """
    settings = {
        "redis_host": "127.0.0.1",
        "redis_port": redis_port,
        "http_host": "127.0.0.1",
        "http_port": port,
        "threads": 1,
        "daemonize": False,
        "database": 0,
        "verbosity": 0,
        "logfile": str(folder / "webdis.log"),
    }
    written = folder / "webdis.json"
    written.write_text(json.dumps(settings))
    return [BINARY, str(written)]


def path_of(key: str) -> str:
    """Return the path that gives the value of *key* as it is, which is cheaper for webdis than wrapping it in JSON."""
    return f"/GET/{key}.txt"
