"""Requests to an account, signed beforehand, as a signature is good for 15 minutes."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.keys import InTurn, Keys
from hotplate.bench.ru.sandbox import Items
from hotplate.stores.cosmos.requests import KeySigner, RequestBuilder
from hotplate.stores.cosmos.url import KEY, Address

# The header of a response that has its charge in RU.
CHARGE = "x-ms-request-charge"
UPSERT = b"content-type: application/json\r\nprefer: return=minimal\r\nx-ms-documentdb-is-upsert: True\r\n"
EVENTUAL, STRONG = "Eventual", "Strong"


@dataclass(frozen=True, slots=True)
class KeyedRequests:
    """Requests made beforehand, in the order in which keys are drawn; see `hotplate.bench.loadgen.load.Requests`."""

    by_key: Mapping[str, bytes]
    keys: Keys

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests; host and headers are in them."""
        del host, headers
        return map(self.by_key.__getitem__, self.keys)


def builder(address: Address, consistency: str = EVENTUAL, clock: Callable[[], float] = time.time) -> RequestBuilder:
    """Return what signs requests; BenchMisused, which says what to do, if the account has no key."""
    if address.key is None:
        raise BenchMisused(
            f"to create and drop a container of its own this needs the key of {address.shown}; give it as "
            f"{KEY} or in a file as {KEY}_FILE"
        )
    signer = KeySigner(address.key, address.shown)
    return RequestBuilder(urlsplit(address.endpoint).netloc, address.database, consistency, signer, clock)


def reads_in_turn(signed: RequestBuilder, container: str, items: Items) -> KeyedRequests:
    """Make requests that read the items one after the other: no partition and no key gets more of them."""
    ids = items.ids
    return KeyedRequests({name: signed.point_read(container, name) for name in ids}, Keys(ids, InTurn()))
