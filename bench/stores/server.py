"""The server of a store: how it is reached, and what it reports of itself."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

from hotplate.bench.process import EMULATOR_METRICS, read_metrics
from hotplate.stores.connect import connect
from hotplate.stores.store import Store
from hotplate.stores.urls import scheme_of


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """Connect to a store until the block ends."""
    store = connect(url)
    try:
        yield store
    finally:
        await store.close()


@dataclass(frozen=True, slots=True)
class StoreServer:
    """What the server of a store reports of itself; each function returns None for what is not known."""

    cpu_s: Callable[[], float | None]
    """CPU time that it has used, for reads and everything else."""

    memory_bytes: Callable[[], int | None]
    """Memory that it has in use."""

    stored_bytes: Callable[[], int | None]
    """Space that its data takes, in memory or on disk."""


def difference(after: float | None, before: float | None) -> float | None:
    """Return what was used between two readings; None if one is not known."""
    return None if after is None or before is None else after - before


def store_server(url: str) -> StoreServer:
    """Return what can report of the server of the store at *url*; on one that others use too, their part is included.

    The service itself reads files through a memory map, whose pages can be dropped at any time. An emulator's CPU and
    memory are not a measure of what the service that it stands for uses; what it stores is as that would charge for it.
    """
    match scheme_of(url):
        case "file":
            return StoreServer(lambda: 0.0, lambda: 0, partial(_folder_bytes, Path(url.removeprefix("file://"))))
        case "redis" | "rediss" | "unix":
            info = partial(_redis_info, url)
            return StoreServer(
                lambda: info("cpu", "used_cpu_user", "used_cpu_sys"),  # of all its threads, to the microsecond
                lambda: int(info("memory", "used_memory_rss")),  # with what its allocator has not given back
                lambda: int(info("memory", "used_memory")),
            )
        case "cosmos+http" | "cosmos+https":
            metric = partial(_emulator_metric, url)
            return StoreServer(
                partial(metric, "process_cpu_seconds_total"),
                lambda: _whole(metric("process_resident_memory_bytes")),
                lambda: _whole(metric("hotplate_cosmos_emulator_stored_bytes", own_database=True)),
            )
        case _:
            return UNKNOWN_SERVER


def _folder_bytes(folder: Path) -> int:
    """Add up blocks on disk, as the files are sparse."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _redis_info(url: str, section: str, *names: str) -> float:
    from redis import Redis  # noqa: PLC0415 -- an extra: only who measures Redis needs it

    from hotplate.stores.redis.url import parse  # noqa: PLC0415 -- as above

    at = parse(url)
    where: dict[str, Any] = (
        {"unix_socket_path": at.path}
        if at.path
        else {"host": at.host, "port": at.port, "ssl": at.tls} | ({"ssl_ca_certs": at.ca} if at.tls else {})
    )
    with Redis(db=at.db, username=at.user, password=at.password, **where) as client:
        values: Any = client.info(section)
    return sum(float(values[name]) for name in names)


def _emulator_metric(url: str, name: str, *, own_database: bool = False) -> float | None:
    """Add up a metric of our emulator; None if another server, or none, is there."""
    from hotplate.stores.cosmos.url import parse  # noqa: PLC0415 -- other stores have other addresses

    at = parse(url)
    own = {"container": f"{at.database}/"} if own_database else {}
    try:
        values = read_metrics(at.endpoint + EMULATOR_METRICS, name, at.ca, **own)
    except (OSError, HTTPException, UnicodeDecodeError):
        return None
    return sum(values) if values or own_database else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


UNKNOWN_SERVER = StoreServer(lambda: None, lambda: None, lambda: None)
