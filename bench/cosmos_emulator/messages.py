"""One request as it was read, one answer as it will be written; headers' names in lower case."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Request:
    """A whole request."""

    method: str
    path: str
    """As it was sent, still encoded, without its query."""

    headers: dict[bytes, bytes]
    body: bytes = b""
    region: int = 0
    """Which of the account's regions was asked, from 0; 0 is the one for writes."""

    scheme: str = "http"
    query: str = ""
    """What follows the path, without the question mark; only the emulation's own pages and ARM look at it."""

    def text(self, name: bytes) -> str:
        """Return a header as text, empty where it is absent."""
        return self.headers.get(name, b"").decode("latin-1")

    def says(self, name: bytes) -> bool:
        """Tell whether a header says true."""
        return self.headers.get(name, b"").lower() == b"true"


@dataclass(slots=True)
class Answer:
    """A whole answer; `delay_s` and `reset` are for injected faults."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    charge_ru: float = 0.0
    content_type: str = "application/json"
    delay_s: float = 0.0
    reset: bool = False
    """Reset the connection in place of answering."""
