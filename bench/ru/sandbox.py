"""A database of our own in an account while that is measured: filled with lists, scaled, and dropped at the end."""

import asyncio
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from azure.core.exceptions import AzureError
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey
from azure.cosmos.exceptions import CosmosResourceNotFoundError

from hotplate.bench.cosmos_emulator.partitions import V2_SPAN, effective_key
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.progress import handling
from hotplate.stores.cosmos.charges import KB
from hotplate.stores.cosmos.errors import first_line
from hotplate.stores.cosmos.rows import DEFINITION, container_of, item_bytes, name_of, to_item
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.store import Containers, CosmosStore, open_containers
from hotplate.stores.cosmos.url import KEY, Address, Throughput, parse
from hotplate.stores.encoding import Checksum, Item, encode
from hotplate.stores.keys import OVERALL, POPULAR, USER
from hotplate.stores.publication import publish
from hotplate.stores.store import Plan, Row

log = logging.getLogger(f"{__name__}.requests")
log.setLevel(logging.WARNING)  # the SDK logs every request at INFO, with what it holds

# Every database that is ever made or dropped here begins so.
PREFIX = "hotplate-bench-"
SCALED_WITHIN_S = 120.0
POLL_S = 0.5
BATCH = 250


@dataclass(frozen=True, slots=True)
class SizedLists:
    """Lists whose items have *size_kb* or a little less, spread evenly over *parts* partitions."""

    size_kb: int
    count: int
    parts: int

    @property
    def users(self) -> tuple[str, ...]:
        """The users, one partition after the other."""
        held: list[list[str]] = [[] for _ in range(self.parts)]
        number = 0
        while min(map(len, held)) * self.parts < self.count:
            user = f"{number:08d}"
            held[partition_of(name_of(USER + user), self.parts)].append(user)
            number += 1
        return tuple(user for turn in zip(*held, strict=False) for user in turn)[: self.count]

    @property
    def body(self) -> bytes:
        """Every user's list: as many items as fit."""
        empty, ten = (self._stored_bytes(items) for items in (1, 11))
        items = 1 + (self.size_kb * KB - empty) * 10 // (ten - empty)
        while self._stored_bytes(items) > self.size_kb * KB:
            items -= 1
        return _list_of(items)

    def _stored_bytes(self, items: int) -> int:
        key = f"{USER}{0:08d}"
        return item_bytes(to_item(name_of(key), Checksum("20260101T000000Z-abcd").seal(key, _list_of(items))))

    def rows(self) -> list[Row]:
        """Return all rows in ascending order of keys."""
        body = self.body
        return [Row(POPULAR + OVERALL, body), *(Row(USER + user, body) for user in sorted(self.users))]


def _list_of(items: int) -> bytes:
    return encode(Item(id=str(10_000 + number), score=0.5) for number in range(items))


def partition_of(name: str, parts: int) -> int:
    """Return which of *parts* even partitions holds the item whose id and partition key are *name*."""
    return int(effective_key(name), 16) * parts // V2_SPAN


@dataclass(slots=True)
class RequestUnits:
    """What a store was charged; an `Observer`."""

    ru: float = 0.0

    def charged(self, ru: float) -> None:
        """See `hotplate.stores.store.Observer`."""
        self.ru += ru

    def failed(self, kind: str) -> None:
        """See `hotplate.stores.store.Observer`."""


class Published(NamedTuple):
    """A release that was published: its container, and what the whole publish cost by list."""

    container: str
    list_ru: float


class Sandbox:
    """A database of our own; `sandbox` makes its name and drops it."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self.url = url
        self.address, self._key = keyed_address(url, environment)
        self._environment = environment
        self._used = False

    @property
    def settings(self) -> dict[str, str]:
        """The environment in which a service finds the store."""
        kept = {name: value for name, value in self._environment.items() if name.startswith("HOTPLATE_COSMOS_")}
        return {"HOTPLATE_STORE": self.url} | kept

    def regions(self) -> int:
        """Count the account's regions. Raises BenchMisused if several are written, BenchFailed if none answers."""
        with self._client() as client:
            account = client.get_database_account()
        if len(account.WritableLocations) > 1:
            raise BenchMisused(
                "the account has several regions that are written; the figures would not be those of one"
            )
        return len(account.ReadableLocations)

    @contextmanager
    def container(self, name: str, ru: int) -> Iterator[ContainerProxy]:
        """Make a container of the SDK's, and the database with it. What the SDK raises is raised as BenchFailed."""
        self._used = True  # before the request: an answer that is lost leaves a database, too
        with self._client() as client:
            database = client.create_database_if_not_exists(self.address.database)
            key, policy = PartitionKey("/id"), DEFINITION["indexingPolicy"]
            yield database.create_container(name, key, indexing_policy=policy, offer_throughput=ru)

    def publish(self, lists: SizedLists) -> Published:
        """Publish *lists* to a container that has the URL's RU/s."""
        self._used = True
        return asyncio.run(self._publish(lists))

    async def _publish(self, lists: SizedLists) -> Published:
        rows, spent = lists.rows(), RequestUnits()

        async def batches() -> AsyncIterator[list[Row]]:
            for start in range(0, len(rows), BATCH):
                yield rows[start : start + BATCH]

        client = SignedClient(self.address, spent)
        store = CosmosStore(self.address, client, partial(open_containers, self.address, spent))
        try:
            plan = Plan(len(rows), sum(len(row.key) + len(row.value) for row in rows))
            await publish(store, batches(), plan=plan, about={})
            live = (await store.catalogue()).live_ref
        finally:
            await store.close()
        if live is None:
            raise BenchFailed(f"what was published to {self.address.shown} did not go live")
        return Published(container_of(live), spent.ru / lists.count)

    def scale(self, container: str, ru: int) -> None:
        """Change the throughput of a container, and wait until the change is done. Raises StoreError if refused."""
        asyncio.run(_scale(open_containers(self.address), container, Throughput(ru)))

    def drop(self) -> None:
        """Drop the database. Raises BenchFailed, naming it, if it cannot be."""
        if not self._used:
            return
        try:
            with self._client() as client, suppress(CosmosResourceNotFoundError):
                client.delete_database(self.address.database)
        except BenchFailed as error:
            sentence = f"{self.address.shown} could not be dropped, and costs money until you drop it"
            raise BenchFailed(f"{sentence}: {error}") from error

    @contextmanager
    def _client(self) -> Iterator[CosmosClient]:
        address = self.address
        verify = True if address.ca is None else address.ca
        try:
            with CosmosClient(address.endpoint, self._key, logger=log, connection_verify=verify) as client:
                yield client
        except AzureError as error:
            raise BenchFailed(f"{address.shown}: {first_line(str(error.message))}") from error


def keyed_address(url: str, environment: Mapping[str, str] = os.environ) -> tuple[Address, str]:
    """Parse the URL of an account, and find its key; BenchMisused, which says what to do, if its key is not given."""
    address = parse(url, environment)
    if address.key is None:
        raise BenchMisused(
            f"to make and drop a database of its own this needs the key of {address.shown}; give it as {KEY} or in a "
            f"file as {KEY}_FILE"
        )
    return address, address.key


def own_url(url: str, ru: int) -> str:
    """Return the URL of a new database of our own in the account of *url*, whose containers have so many RU/s."""
    parts = urlsplit(url)
    kept = {name: value for name, value in parse_qsl(parts.query) if name in {"ca", "region", "consistency"}}
    query = urlencode(kept | {"ru": str(ru)})
    return urlunsplit(parts._replace(path=f"/{PREFIX}{secrets.token_hex(4)}", query=query))


@contextmanager
def sandbox(url: str, ru: int, environment: Mapping[str, str] | None = None) -> Iterator[Sandbox]:
    """Make a database of our own in the account of *url*, dropped when the block ends, also by an error or Ctrl-C."""
    made = Sandbox(own_url(url, ru), os.environ if environment is None else environment)
    try:
        yield made
    finally:
        with handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)):
            made.drop()  # takes seconds, and leaves nothing that costs money


async def _scale(containers: Containers, container: str, throughput: Throughput) -> None:
    try:
        await containers.scale(container, throughput)
        until = time.monotonic() + SCALED_WITHIN_S
        while time.monotonic() < until:
            offer = await containers.offer(container)
            if offer is not None and not offer.pending and offer.throughput == throughput:
                return
            await asyncio.sleep(POLL_S)
    finally:
        await containers.close()
    raise BenchFailed(f"{container} was not scaled to {throughput.ru:,} RU/s within {SCALED_WITHIN_S:g} s")
