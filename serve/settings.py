"""What a service is told at its start; read once, at the door."""

from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_N = 10
MAX_N = 1000
MAX_USERS = 2000
"""How many users one POST may name."""

MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """One service: which stores, where it listens, how long it waits."""

    stores: tuple[str, ...]
    """URLs, the first to be asked first."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    budget_s: float = 0.05
    """What one request may spend on reads, all stores together."""

    drain_s: float = 10.0
    """How long a stopping worker goes on answering what it accepted."""

    @property
    def tiers(self) -> tuple[str, ...]:
        """Return the names of the tiers: each store's scheme, numbered where it is there twice."""
        schemes = [urlsplit(url).scheme for url in self.stores]
        return tuple(
            scheme if schemes.index(scheme) == place else f"{scheme}-{schemes[:place].count(scheme) + 1}"
            for place, scheme in enumerate(schemes)
        )
