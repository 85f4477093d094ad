"""What one run asks of a service: where, what, how often and for how long."""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Check = Callable[[int, bytes], str | None]
"""Judges an answer by its status and body: None when it is good, else the kind of error to count it as."""

PICKS = 4096  # random paths drawn at a time, which is five times cheaper than one by one


def status_is_good(status: int, body: bytes) -> str | None:
    """Call every status from 400 on an error."""
    del body
    return "status" if status >= 400 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run to be made; may be run any number of times.

    `rate` is in requests/s; None closes the loop: each connection sends its next request when the last is answered.
    `paths` are sent in turn, or with a `seed` drawn at random. A request out of its `timeout_s` is given up, counted
    from when it was due; at most `backlog` due requests wait for a connection, and further ones are dropped.
    `check` judges every answer, instead of its status alone; an exception from it ends the run. `observe` names string
    fields of a compact JSON body whose values are counted. `spin` keeps the pace to microseconds on a core of its own.
    """

    url: str
    paths: Sequence[str]
    rate: float | None
    duration_s: float
    connections: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    spin: bool = False
    timeout_s: float = 5.0
    backlog: int = 10_000
    seed: int | None = None
    check: Check = status_is_good
    observe: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be run, with a sentence for each."""
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError(f"The target must look like http://HOST:PORT, and this is {self.url!r}.")
        if not self.paths:
            raise ValueError("There is no path to ask for.")
        for text in (*self.paths, *itertools.chain.from_iterable(self.headers.items())):
            if not text.isascii() or not text.isprintable():
                raise ValueError(f"{text!r} cannot stand in a request; percent-encode it.")
        for path in self.paths:
            if not path.startswith("/") or " " in path:
                raise ValueError(f"A path starts with / and has no spaces, and this is {path!r}.")
        for name in ("rate", "duration_s", "connections", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above zero, and is {value}.")

    @property
    def host(self) -> str:
        """Where to connect to."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Where to connect to; 80 unless told."""
        return urlsplit(self.url).port or 80

    def requests(self) -> Iterator[bytes]:
        """Give the requests as they go over the wire, without end."""
        lines = [f"Host: {urlsplit(self.url).netloc}", *(f"{name}: {value}" for name, value in self.headers.items())]
        tail = (" HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()
        for path in self._picks():
            yield b"GET " + path + tail

    def _picks(self) -> Iterator[bytes]:
        paths = [path.encode() for path in self.paths]
        if self.seed is None:
            yield from itertools.cycle(paths)
        chance = random.Random(self.seed)  # noqa: S311 -- a repeatable choice, not a secret
        while True:
            yield from chance.choices(paths, k=PICKS)
