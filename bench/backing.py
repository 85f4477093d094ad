"""What stands behind a store: the server or the folder that holds it, and what that spends and takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

EMULATORS = {"cosmos+http": "local emulator, not Azure", "cosmos+https": "local emulator, not Azure"}


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

        from stores.redis_url import parse  # noqa: PLC0415 -- as above

        at = parse(self.url)
        where: dict[str, Any] = (
            {"unix_socket_path": at.path}
            if at.path
            else {"host": at.host, "port": at.port, "ssl": at.tls} | ({"ssl_ca_certs": at.ca} if at.tls else {})
        )
        with Client(db=at.db, username=at.user, password=at.password, **where) as client:
            return client.info(section)


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
        case _:
            return Unknown()


def emulator(url: str) -> str | None:
    """Say what to show in place of a latency, where *url* names an emulator: its times are not those of the service."""
    return EMULATORS.get(urlsplit(url).scheme)
