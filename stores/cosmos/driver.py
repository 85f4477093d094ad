"""What hotplate asks of Cosmos DB, in its own words: of its items, and of the containers that they are in.

Two drivers answer both: over the wire, and through azure-cosmos. Where Entra ID says who asks, the account answers
only what is asked of items, and Azure Resource Manager is asked about containers.

A driver makes one attempt and tells what came of it. Whether to try again, and when, is decided by its callers, once
for both. Every item's id is its partition key.
"""

from typing import Any, NamedTuple, Protocol

from stores.cosmos.throughput import Throughput

Item = dict[str, Any]

DEADLINE_S = 5.0
"""When anything but a lookup is given up; the service itself ends operations then."""

DEFINITION: dict[str, Any] = {
    "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2},
    "indexingPolicy": {"indexingMode": "none", "automatic": False},
}
"""Of every container of ours: read by id only, so nothing is indexed. The service refuses a time to live with that."""


class Look(NamedTuple):
    """A control item as it is now: None where there is none; its version, and the service's clock in seconds."""

    item: Item | None
    etag: str
    now: float


class Wrote(NamedTuple):
    """What a write came to: not done where its condition did not hold (409, 412)."""

    done: bool
    charge_ru: float


class Account(NamedTuple):
    """What the account says of itself."""

    many_writers: bool
    """Whether several regions take writes: then nothing can be compared and set."""

    regions: tuple[str, ...]
    """Those that can be read, in the order in which lookups try them."""


class Offer(NamedTuple):
    """What a container may spend; *minimum_ru* is the least it can be set to, *pending* while a change is under way."""

    throughput: Throughput
    minimum_ru: int
    pending: bool


class Items(Protocol):
    """The items of one database. Every method raises StoreError, ContainerMissing where the container is not there.

    429 is CosmosThrottled, what another attempt may mend is CosmosUnavailable. An answer that is cut short or makes no
    sense is `malformed`, never data. An instance belongs to one event loop and opens nothing before its first call.
    """

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> Item | None:
        """Point-read one item from the nearest region that answers; None where there is none.

        *fresh* is for publishers: it sees what this driver wrote, from the region that is written.
        """
        ...

    async def look(self, container: str, name: str) -> Look:
        """Read a control item as `read` does when fresh."""
        ...

    async def create(self, container: str, item: Item) -> Wrote:
        """Write an item; not done where its id is taken."""
        ...

    async def upsert(self, container: str, item: Item) -> Wrote:
        """Write an item, in the place of one of its id where there is one."""
        ...

    async def replace(self, container: str, item: Item, etag: str) -> Wrote:
        """Put an item in the place of the version *etag*; not done where that is no longer the one."""
        ...

    async def account(self) -> Account:
        """Ask the account about itself."""
        ...

    async def close(self) -> None:
        """Give back connections; closing twice does nothing."""
        ...


class Containers(Protocol):
    """One database and its containers: made, scaled and dropped. Errors are those of `Items`."""

    async def create_database(self) -> bool:
        """Make the database; False where it was there."""
        ...

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        """Make a container by DEFINITION; False where it was there. None: the account is serverless."""
        ...

    async def delete_container(self, container: str) -> None:
        """Drop a container with all it holds, for no RU; nothing happens where there is none."""
        ...

    async def offer(self, container: str) -> Offer | None:
        """Tell what a container may spend; None where the account is serverless."""
        ...

    async def scale(self, container: str, throughput: Throughput) -> None:
        """Ask for other throughput; `offer` tells when it is there."""
        ...

    async def close(self) -> None:
        """Give back connections; closing twice does nothing."""
        ...


class Driver(Items, Containers, Protocol):
    """Whoever does both; what `Items` and `Containers` say of an instance's life holds for it, too."""
