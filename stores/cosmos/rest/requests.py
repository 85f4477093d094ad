"""The bytes of requests to one endpoint of an account: dated, signed, and put together from what is the same for many.

The protocol is https://learn.microsoft.com/rest/api/cosmos-db; only headers that an answer depends on are sent.
"""

import re
from collections.abc import Callable
from email.utils import formatdate

from stores.cosmos.signing import Signer
from stores.errors import StoreMisused

VERSION = b"2020-07-15"
AGENT = b"hotplate"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,1022}")
"""Of items and containers: what needs no escaping in a path, in a header and in JSON."""


class Requests:
    """Lives as long as the way to its endpoint; what was signed is kept for the second that it names."""

    def __init__(self, host: str, database: str, consistency: str, signer: Signer, clock: Callable[[], float]) -> None:
        self._host = host.encode()
        self._database = database
        self._consistency = consistency.encode()
        self._signer = signer
        self._clock = clock
        self._second = -1
        self._date = b""
        self._end = b""
        self._reads = dict[str, tuple[bytes, bytes]]()
        self._heads = dict[tuple[str, str, str], bytes]()

    def read(self, container: str, name: str) -> bytes:
        """Ask for one item as lookups do; StoreMisused for a name that needs escaping."""
        if not NAME.fullmatch(name):
            raise StoreMisused(f"{name[:80]!r} cannot be the id of an item: ids are of A-Z, a-z, 0-9, _, - and .")
        second = int(self._clock())
        if second != self._second:
            self._turn(second)
        signing, request = self._reads.get(container) or self._read_of(container)
        item = name.encode()
        return request % (item, item, self._signer.authorization(signing + item + self._end))

    def _read_of(self, container: str) -> tuple[bytes, bytes]:
        """Return what is signed before the item's id, and the request with room for id, key and signature."""
        link = f"dbs/{self._database}/colls/{_checked(container)}/docs/".encode()
        request = (
            b"GET /%b%%b/ HTTP/1.1\r\nhost: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n"
            b'x-ms-consistency-level: %b\r\nx-ms-documentdb-partitionkey: ["%%b"]\r\nauthorization: %%b\r\n\r\n'
        ) % (link, self._host, AGENT, VERSION, self._date, self._consistency)
        made = self._reads[container] = b"get\ndocs\n" + link, request
        return made

    def ask(self, verb: str, kind: str, link: str, path: str, *, headers: bytes = b"", body: bytes = b"") -> bytes:
        """Ask for anything; *headers* are whole lines.

        *link* is what is signed, without a slash at its end; *path* is asked for, without the one at its beginning.
        """
        second = int(self._clock())
        if second != self._second:
            self._turn(second)
        head = self._heads.get((verb, path, link)) or self._head_of(verb, kind, link, path)
        if verb == "GET":
            return b"%b%b\r\n" % (head, headers)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, headers, len(body), body)

    def _head_of(self, verb: str, kind: str, link: str, path: str) -> bytes:
        text = f"{verb.lower()}\n{kind}\n{link}".encode() + self._end
        made = (
            b"%b /%b HTTP/1.1\r\nhost: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n"
            b"authorization: %b\r\n"
        ) % (
            verb.encode(),
            path.encode(),
            self._host,
            AGENT,
            VERSION,
            self._date,
            self._signer.authorization(text),
        )
        self._heads[verb, path, link] = made
        return made

    def forget(self) -> None:
        """Sign anew from now on: another token is in the place of the one that was signed with."""
        self._second = -1

    def _turn(self, second: int) -> None:
        """Begin another second: what was signed in the one before is forgotten."""
        date = formatdate(second, usegmt=True)
        self._second, self._date, self._end = second, date.encode(), f"\n{date.lower()}\n\n".encode()
        self._reads.clear()
        self._heads.clear()


def keyed(name: str) -> bytes:
    """Return the header that names the partition key of an item; StoreMisused for a name that needs escaping."""
    return b'x-ms-documentdb-partitionkey: ["%b"]\r\n' % _checked(name).encode()


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise StoreMisused(f"{name[:80]!r} cannot be a name: names are of A-Z, a-z, 0-9, _, - and .")
    return name
