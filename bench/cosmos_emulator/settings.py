"""What an emulator is told at its start; read once, at the door."""

from dataclasses import dataclass, field
from pathlib import Path

from bench.cosmos_emulator.auth import WELL_KNOWN_KEY

REGIONS = ("Emulated West", "Emulated East")


@dataclass(frozen=True, slots=True)
class Settings:
    """One emulator: where it listens, what its account is like."""

    host: str = "127.0.0.1"
    port: int = 8081
    second_port: int | None = None
    """Where the second region listens; None for one region."""

    key: str = field(default=WELL_KNOWN_KEY, repr=False)
    key_file: Path | None = None
    """Where the key came from, for the line to connect; None for the well-known one."""

    consistency: str = "Session"
    burst: bool = False
    charges: Path | None = None
    """The user's coefficients; None for ours."""

    tls: bool = False
    certificate: Path | None = None
    """Where the generated certificate is written, for clients to trust."""

    entra: bool = False
    faults: Path | None = None
    """Faults to begin with, as JSON."""
