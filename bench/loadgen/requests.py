"""The requests of a run as they go over the wire: plain GETs in turn, GETs by key, or POSTs for many users at once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import quote

import orjson

from bench.errors import BenchMisused
from bench.loadgen.keys import Keys

PLACE = "{key}"
MANY = "/v1/recommendations"


class Requests(Protocol):
    """What is asked for; a value, so that it can be sent to another process."""

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests, whole, without end."""
        ...

    def share(self, part: int) -> "Requests":
        """Give the requests for one of several processes."""
        ...


@dataclass(frozen=True, slots=True)
class Paths:
    """GETs of a few paths in turn."""

    paths: Sequence[str]

    def __post_init__(self) -> None:
        """Refuse what is no path."""
        if not self.paths:
            raise BenchMisused("There is no path to ask for.")
        for path in self.paths:
            check_path(path)

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        tail = _tail(host, headers)
        return itertools.cycle([b"GET " + path.encode() + tail for path in self.paths])

    def share(self, part: int) -> "Paths":
        """See `Requests`."""
        del part  # a process more or less makes no difference to a cycle
        return self


@dataclass(frozen=True, slots=True)
class Gets:
    """GETs of one path, in which `{key}` is the id that was drawn."""

    path: str
    keys: Keys

    def __post_init__(self) -> None:
        """Refuse what is no path with a place for a key."""
        check_path(self.path)
        if PLACE not in self.path:
            raise BenchMisused(f"a path for keys has a {PLACE} in it, and this is {self.path!r}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        before, _, after = self.path.partition(PLACE)
        head, tail = f"GET {before}".encode(), after.encode() + _tail(host, headers)
        for key in self.keys:
            yield head + quote(key, safe="").encode() + tail

    def share(self, part: int) -> "Gets":
        """See `Requests`."""
        return replace(self, keys=self.keys.share(part))


@dataclass(frozen=True, slots=True)
class Posts:
    """POSTs for `batch` users each."""

    keys: Keys
    batch: int
    n: int = 10

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.batch < 1:
            raise BenchMisused(f"a batch has one user or more, not {self.batch}")

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Requests`."""
        drawn = iter(self.keys)
        while True:
            body = orjson.dumps({"users": list(itertools.islice(drawn, self.batch)), "n": self.n})
            told = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
            yield f"POST {MANY}".encode() + _tail(host, told) + body

    def share(self, part: int) -> "Posts":
        """See `Requests`."""
        return replace(self, keys=self.keys.share(part))


def check_path(path: str) -> None:
    """Refuse what cannot stand in the first line of a request."""
    check_text(path)
    if not path.startswith("/") or " " in path:
        raise BenchMisused(f"A path starts with / and has no spaces, and this is {path!r}.")


def check_text(text: str) -> None:
    """Refuse what cannot stand in the head of a request."""
    if not text.isascii() or not text.isprintable():
        raise BenchMisused(f"{text!r} cannot stand in a request; percent-encode it.")


def _tail(host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    return (" HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()
