"""A temporary database, filled with lists, scaled, and dropped at the end."""

import itertools
import logging
import os
import secrets
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseError
from azure.cosmos import ContainerProxy, CosmosClient, PartitionKey
from azure.cosmos.exceptions import CosmosResourceNotFoundError

from hotplate.base.recommendations import Item
from hotplate.bench.cosmos_emulator.partitions import V2_SPAN, effective_key
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.measure.lists import publish_rows, read_charge
from hotplate.bench.measure.progress import handling
from hotplate.bench.options import is_emulated
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import run_on
from hotplate.stores.cosmos.azure_errors import error_of
from hotplate.stores.cosmos.charges import KB, overhead_ru
from hotplate.stores.cosmos.charges import load as load_charges
from hotplate.stores.cosmos.containers import open_containers
from hotplate.stores.cosmos.errors import SENTENCES
from hotplate.stores.cosmos.items import DEFINITION, item_bytes, name_of, to_item
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.cosmos.url import KEY, Address, Throughput, parse
from hotplate.stores.encoding import OVERALL, POPULAR, USER, Checksum, encode
from hotplate.stores.errors import StoreError
from hotplate.stores.store import ChargeCounter, Observer, Plan, Row, batches_of

log = logging.getLogger(f"{__name__}.requests")
log.setLevel(logging.WARNING)  # the SDK logs every request at INFO

# Only these databases are created and dropped.
PREFIX = "hotplate-bench-"
BATCH = 250


@dataclass(frozen=True, slots=True)
class SizedLists:
    """Lists of at most *size_kb* an item, evenly over *parts* partitions."""

    size_kb: int
    count: int
    parts: int

    @property
    def users(self) -> tuple[str, ...]:
        """The ids of `count` users, of which successive ones are in the `parts` partitions in turn.

        Requests for them in this order spend the budgets of all partitions evenly.
        """
        users_by_partition: list[list[str]] = [[] for _ in range(self.parts)]
        number = 0
        while min(map(len, users_by_partition)) * self.parts < self.count:
            user = f"{number:08d}"
            partition = partition_of(name_of(USER + user), self.parts)
            users_by_partition[partition].append(user)
            number += 1

        users = itertools.chain.from_iterable(zip(*users_by_partition, strict=False))
        return tuple(itertools.islice(users, self.count))

    @property
    def body(self) -> bytes:
        """The list of every user, as long as fits."""
        shortest = self._stored_bytes(1)
        ten_bytes = self._stored_bytes(11) - shortest  # of ten more items
        items = 1 + (self.size_kb * KB - shortest) * 10 // ten_bytes
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
    """Return an item's partition, of *parts* equal ones."""
    return int(effective_key(name), 16) * parts // V2_SPAN


class Published(NamedTuple):
    """A release, and the charges of a list: written and read back, and read once."""

    release: ReleaseRef
    list_ru: float
    read_ru: float


class Sandbox:
    """A temporary database; see `sandbox`."""

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self.url = url
        self.environment = environment
        self.address, self._key = keyed_address(url, environment)
        self._used = False

    def regions(self) -> tuple[str, ...]:
        """Return names of regions; the first is read. Raises BenchMisused for several write regions, BenchFailed."""
        with self._client() as client:
            account = client.get_database_account()
        if len(account.WritableLocations) > 1:
            raise BenchMisused("the account has several write regions, which changes the figures")
        names = [str(location["name"]) for location in account.ReadableLocations]
        return tuple(sorted(names, key=lambda name: name != self.address.region))

    @contextmanager
    def container(self, name: str, ru: int) -> Iterator[ContainerProxy]:
        """Create a container and, if needed, the database. Raises BenchFailed for SDK errors of the block, too."""
        self._used = True  # first: a lost response leaves a database, too
        with self._client() as client:
            database = client.create_database_if_not_exists(self.address.database)
            key = PartitionKey("/id")
            policy = DEFINITION["indexingPolicy"]
            yield database.create_container(name, key, indexing_policy=policy, offer_throughput=ru)

    def publish(self, lists: SizedLists) -> Published:
        """Publish *lists* with the URL's throughput, and return the live release with the charges of a list.

        That of publishing one is what was spent, less the computed overhead of a publish, by the number of lists.
        """
        self._used = True
        rows = lists.rows()
        data_bytes = sum(len(row.key) + len(row.value) for row in rows)
        spent = ChargeCounter()
        live = run_on(
            _store_at(self.address, spent),
            lambda store: publish_rows(store, batches_of(rows, BATCH), Plan(len(rows), data_bytes)),
        )

        user_row = rows[-1]
        item_size = item_bytes(to_item(user_row.key, user_row.value))
        publish_overhead_ru = overhead_ru(load_charges(), len(rows), item_size)
        list_ru = (spent.ru - publish_overhead_ru) / len(rows)
        read_ru = run_on(_store_at(self.address, spent), lambda store: read_charge(store, spent, lists.users))
        return Published(live, list_ru, read_ru)

    def scale(self, release: ReleaseRef, throughput: Throughput) -> None:
        """Scale a release's container, and wait. Raises StoreError."""
        address = replace(self.address, throughput=throughput)
        run_on(_store_at(address), lambda store: store.prepare(release))

    def drop(self) -> None:
        """Drop the database. Raises BenchFailed."""
        if not self._used:
            return
        try:
            with self._client() as client, suppress(CosmosResourceNotFoundError):
                client.delete_database(self.address.database)
        except BenchFailed as error:
            costs = "" if is_emulated(self.url) else "; the database costs money until you drop it"
            raise BenchFailed(f"the database was not dropped: {error}{costs}") from error

    @contextmanager
    def _client(self) -> Iterator[CosmosClient]:
        address = self.address
        verify = True if address.ca is None else address.ca
        try:
            with CosmosClient(address.endpoint, self._key, logger=log, connection_verify=verify) as client:
                yield client
        except AzureError as error:
            raise BenchFailed(explain(error, address.shown)) from error


def explain(error: AzureError, where: str) -> str:
    """Return the message of an SDK error, as hotplate's store would write it; *where* is the account or database."""
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return f"{where} {SENTENCES['connect']}; check its name, its firewall, and whether its write region is up"
    return str(error_of(error, where))


def keyed_address(url: str, environment: Mapping[str, str] = os.environ) -> tuple[Address, str]:
    """Return address and key. Raises BenchMisused without a key."""
    address = parse(url, environment)
    if address.key is None:
        raise BenchMisused(
            f"a temporary database in {address.shown} needs the account's key; give it as {KEY}, or in a file as "
            f"{KEY}_FILE"
        )
    return address, address.key


def own_url(url: str, throughput: Throughput) -> str:
    """Return the URL of a new database in the account, of which one region is read: others have separate RU/s."""
    parts = urlsplit(url)
    kept = {name: value for name, value in parse_qsl(parts.query) if name in {"ca", "region", "consistency"}}
    kind = "autoscale-" if throughput.autoscale else ""
    query = urlencode(kept | {"failover": "no", "ru": f"{kind}{throughput.ru}"})
    return urlunsplit(parts._replace(path=f"/{PREFIX}{secrets.token_hex(4)}", query=query))


@contextmanager
def sandbox(
    url: str, ru: int, environment: Mapping[str, str] | None = None, *, autoscale: bool = False
) -> Iterator[Sandbox]:
    """Yield a temporary database in the account of *url*, and drop it at the end, also after Ctrl-C.

    ru           the throughput of its container
    environment  variables with the account's key; the process's own if None
    """
    database = Sandbox(own_url(url, Throughput(ru, autoscale)), os.environ if environment is None else environment)
    failure = ""
    try:
        yield database
    except (BenchFailed, StoreError) as error:
        failure = f"{error}; "
        raise
    finally:
        with handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)):
            _drop(database, failure)  # takes seconds; a database costs money


def _drop(database: Sandbox, failure: str) -> None:
    """Drop a database; an error begins with the *failure* that it would replace."""
    try:
        database.drop()
    except BenchFailed as error:
        raise BenchFailed(f"{failure}{error}") from error


def _store_at(address: Address, observer: Observer | None = None) -> CosmosStore:
    return CosmosStore(address, SignedClient(address, observer), partial(open_containers, address, observer))
