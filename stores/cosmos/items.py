"""Rows as items of Cosmos DB: their names, their form, their size; and what reads and writes of them return.

A row's id, which is its partition key, is `KIND.` and its ID in base64url: letters that need no escaping anywhere. All
else in a container has a name without a dot. A value is text if it is valid UTF-8 and shorter so, else base64.
"""

import re
from base64 import urlsafe_b64encode
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.charges import SYSTEM_BYTES
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreFull
from hotplate.stores.keys import check_kind

CosmosItem = dict[str, Any]

# Of every container of ours: read by id only, so nothing is indexed. The service refuses a time to live with that.
DEFINITION: dict[str, Any] = {
    "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2},
    "indexingPolicy": {"indexingMode": "none", "automatic": False},
}

# The container of the catalogue.
CONTROL = "hotplate"
CATALOGUE = "catalogue"

# The item that says of a release's container whether it is a draft, or sealed.
STATE = "state"

CONTAINER = "release-"
INCARNATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
# What is drawn for a release.
DRAWN = re.compile(r"[0-9a-f]{12}")

# Of an item, by https://learn.microsoft.com/azure/cosmos-db/concepts-limits.
MAX_ITEM_BYTES = 2 << 20


class VersionedItem(NamedTuple):
    """An item as it is now: None if there is none; its etag, and the service's clock in seconds."""

    item: CosmosItem | None
    etag: str
    now: float


class ItemWritten(NamedTuple):
    """The result of a write: not done where its condition did not hold (409, 412)."""

    done: bool
    charge_ru: float


class Account(NamedTuple):
    """What the account says of itself."""

    multiple_write_regions: bool
    """Whether several regions take writes: then nothing can be compared and set."""

    regions: tuple[str, ...]
    """Those that can be read, in the order in which lookups try them."""


@lru_cache(64)
def container_of(release: ReleaseRef | DraftRef) -> str:
    """Return the container of a release, named by its incarnation; ReleaseNotFound if no release has such a name."""
    if not INCARNATION.fullmatch(release.incarnation):
        raise ReleaseNotFound(f"release {release.id[:80]!r} is not in this store: no release has such an id")
    return CONTAINER + release.incarnation


def name_of(key: str) -> str:
    """Return the id of a row's item; StoreMisused for a key of no known kind.

    A key that UTF-8 cannot express has the id of no row, so it is read as absent.
    """
    kind, colon, identifier = key.partition(":")
    encoded = urlsafe_b64encode(identifier.encode("utf-8", "surrogatepass")).decode()
    return f"{check_kind(kind if colon else '')}.{encoded.rstrip('=')}"


def to_item(name: str, value: bytes) -> CosmosItem:
    """Return the item of a value, in the shorter of two forms."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(orjson.dumps(text)) - 2 <= (len(value) + 2) // 3 * 4:
        return {"id": name, "t": text}
    return {"id": name, "b": b2a_base64(value, newline=False).decode()}


def value_of(item: CosmosItem) -> bytes:
    """Return the value of an item; ReleaseCorrupt for an item that `to_item` did not make."""
    try:
        if (text := item.get("t")) is not None:
            return bytes(text.encode())
        return a2b_base64(item["b"], strict_mode=True)
    except (KeyError, AttributeError, TypeError, NotBase64, ValueError) as error:
        raise ReleaseCorrupt(f"the item {item.get('id')!r} was not written by hotplate; publish again") from error


def item_bytes(item: CosmosItem) -> int:
    """Return the size that is stored and charged for; StoreFull if it is more than an item may have."""
    # What was read has the service's own properties among ours.
    ours = {name: value for name, value in item.items() if name[0] != "_"} if "_rid" in item else item
    size = len(orjson.dumps(ours)) + SYSTEM_BYTES
    if size > MAX_ITEM_BYTES:
        raise StoreFull(
            f"the row {item['id']} takes {size:,} bytes as an item, and Cosmos DB stores {MAX_ITEM_BYTES:,} at most; "
            f"publish shorter lists"
        )
    return size


def batch_name(series: str, number: int) -> str:
    """Return the id of the item with the keys of an acknowledged batch, the *number*-th, from 1, of its series."""
    return f"{series}-{number}"
