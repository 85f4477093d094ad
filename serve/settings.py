"""What a service is told at its start; read once, at the door."""

from dataclasses import dataclass

DEFAULT_N = 10
MAX_N = 1000
MAX_USERS = 2000
"""How many users one POST may name."""

MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """One service: which store, where it listens, how long it waits."""

    store: str
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    deadline_s: float = 0.05
    """The budget of one request for everything that it reads."""

    drain_s: float = 10.0
    """How long a stopping worker goes on answering what it accepted."""
