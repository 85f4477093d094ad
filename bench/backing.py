"""What stands behind a store: the server or the folder that holds it, and what that spends and takes."""

import ssl
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

EMULATORS = {"cosmos+http": "local emulator, not Azure", "cosmos+https": "local emulator, not Azure"}

METRICS = "/__emulation/metrics"
PATIENCE_S = 5.0
"""When a server that does not tell what it spends is given up."""


class Backing(Protocol):
    """What may be known of the far side of a store; None for what is not."""

    def cpu_s(self) -> float | None:
        """CPU time that its server has spent, on reads and all else."""

    def memory_bytes(self) -> int | None:
        """Memory that its server has in use."""

    def stored_bytes(self) -> int | None:
        """Room that its data takes, in memory or on disk."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Files, read through a map by the service itself: no server spends anything."""

    folder: Path

    def cpu_s(self) -> float:
        """See `Backing`: there is none to spend any."""
        return 0.0

    def memory_bytes(self) -> int:
        """See `Backing`: what is mapped of the files can be dropped at any time."""
        return 0

    def stored_bytes(self) -> int:
        """See `Backing`: blocks on disk, as files of maps have holes."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.rglob("*") if path.is_file())


@dataclass(frozen=True, slots=True)
class Redis:
    """A Redis server, which tells what it spends; on one that others use too, their part is in it."""

    url: str

    def cpu_s(self) -> float:
        """See `Backing`: of all its threads, to the microsecond."""
        told = self._info("cpu")
        return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])

    def memory_bytes(self) -> int:
        """See `Backing`: resident, so with what its allocator has not given back."""
        return int(self._info("memory")["used_memory_rss"])

    def stored_bytes(self) -> int:
        """See `Backing`: what it asked its allocator for."""
        return int(self._info("memory")["used_memory"])

    def _info(self, section: str) -> Any:  # noqa: ANN401 -- redis-py parses it to whatever it is
        from redis import Redis as Client  # noqa: PLC0415 -- an extra: only who measures Redis needs it

        from stores.redis.url import parse  # noqa: PLC0415 -- as above

        at = parse(self.url)
        where: dict[str, Any] = (
            {"unix_socket_path": at.path}
            if at.path
            else {"host": at.host, "port": at.port, "ssl": at.tls} | ({"ssl_ca_certs": at.ca} if at.tls else {})
        )
        with Client(db=at.db, username=at.user, password=at.password, **where) as client:
            return client.info(section)


@dataclass(frozen=True, slots=True)
class CosmosEmulator:
    """Our own emulator of Cosmos DB, whose metrics tell what it spends; of any other server nothing is known."""

    url: str

    def cpu_s(self) -> float | None:
        """See `Backing`: of the emulator, which is no measure of what the service that it stands for spends."""
        return self._sum("process_cpu_seconds_total")

    def memory_bytes(self) -> int | None:
        """See `Backing`: resident; it keeps all items in memory."""
        return _whole(self._sum("process_resident_memory_bytes"))

    def stored_bytes(self) -> int | None:
        """See `Backing`: of this database's items, as the service would charge for them."""
        return _whole(self._sum("hotplate_cosmos_emulator_stored_bytes", ours_only=True))

    def _sum(self, name: str, *, ours_only: bool = False) -> float | None:
        from stores.cosmos.url import parse  # noqa: PLC0415 -- other stores have other addresses

        at = parse(self.url)
        secure = at.endpoint.startswith("https:")
        trusted = ssl.create_default_context(cafile=at.ca) if secure else None
        try:
            with urlopen(f"{at.endpoint}{METRICS}", timeout=PATIENCE_S, context=trusted) as page:  # noqa: S310 -- http(s), by the store's own parser
                told = page.read().decode()
        except (OSError, HTTPException, UnicodeDecodeError):
            return None
        values = [
            sample.value
            for family in text_string_to_metric_families(told)
            for sample in family.samples
            if sample.name == name and (not ours_only or sample.labels["container"].partition("/")[0] == at.database)
        ]
        return sum(values) if values or ours_only else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A far side that tells nothing of itself."""

    def cpu_s(self) -> None:
        """See `Backing`."""

    def memory_bytes(self) -> None:
        """See `Backing`."""

    def stored_bytes(self) -> None:
        """See `Backing`."""


def backing(url: str) -> Backing:
    """Tell what stands behind the store at *url*."""
    match urlsplit(url).scheme:
        case "file":
            return Folder(Path(url.removeprefix("file://")))
        case "redis" | "rediss" | "unix":
            return Redis(url)
        case "cosmos+http" | "cosmos+https":
            return CosmosEmulator(url)
        case _:
            return Unknown()


def emulator(url: str) -> str | None:
    """Say what to show in place of a latency, where *url* names an emulator: its times are not those of the service."""
    return EMULATORS.get(urlsplit(url).scheme)
