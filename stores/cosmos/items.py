"""How a row looks as an item of Cosmos DB, what things are called there, and what an item will be charged as.

A row's id, which is its partition key, is `KIND.` and its ID in base64url: letters that need no escaping anywhere. All
else in a container has a name without a dot. A value is text where it is valid UTF-8 and shorter so, else base64.
"""

import re
from base64 import urlsafe_b64encode
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from functools import lru_cache

import orjson

from stores.catalogue import ReleaseId
from stores.cosmos.charges import Charges
from stores.cosmos.driver import Item
from stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreFull
from stores.keys import check_kind

CONTROL = "hotplate"
"""The container of the catalogue."""

CATALOGUE = "catalogue"
STATE = "state"
"""The item that says of a release's container whether it is a draft, or sealed."""

CONTAINER = "release-"
RELEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

MOST_BYTES = 2 << 20
"""Of an item, by https://learn.microsoft.com/azure/cosmos-db/concepts-limits."""

SYSTEM_BYTES = 205
"""What the service adds to each item (_rid, _self, _etag, _ts, _attachments), and is assumed to charge for."""


@lru_cache(64)
def container_of(release: ReleaseId) -> str:
    """Return the container of a release; ReleaseNotFound for an id that no release of ours has."""
    if not RELEASE_ID.fullmatch(release):
        raise ReleaseNotFound(f"release {release[:80]!r} is not in this store: no release has such an id")
    return CONTAINER + release


def name_of(key: str) -> str:
    """Return the id of a row's item; StoreMisused for a key of no known kind."""
    kind, colon, identifier = key.partition(":")
    return f"{check_kind(kind if colon else '')}.{urlsafe_b64encode(identifier.encode()).decode().rstrip('=')}"


def to_item(name: str, value: bytes) -> Item:
    """Wrap a value, in the shorter of two forms."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(orjson.dumps(text)) - 2 <= (len(value) + 2) // 3 * 4:
        return {"id": name, "t": text}
    return {"id": name, "b": b2a_base64(value, newline=False).decode()}


def value_of(item: Item) -> bytes:
    """Unwrap a value; ReleaseCorrupt for an item that `to_item` did not make."""
    try:
        if (text := item.get("t")) is not None:
            return bytes(text.encode())
        return a2b_base64(item["b"], strict_mode=True)
    except (KeyError, AttributeError, TypeError, NotBase64, ValueError) as error:
        raise ReleaseCorrupt(f"the item {item.get('id')!r} was not written by hotplate; publish again") from error


def item_bytes(item: Item) -> int:
    """Return the size that is stored and charged for; StoreFull where it is more than an item may have."""
    # What was read has the service's own properties among ours.
    ours = {name: value for name, value in item.items() if name[0] != "_"} if "_rid" in item else item
    size = len(orjson.dumps(ours)) + SYSTEM_BYTES
    if size > MOST_BYTES:
        raise StoreFull(
            f"the row {item['id']} takes {size:,} bytes as an item, and Cosmos DB stores {MOST_BYTES:,} at most; "
            f"publish shorter lists"
        )
    return size


def row_charge(charges: Charges, key: str, value: bytes) -> float:
    """Return the RU that writing a new row costs, by the coefficients."""
    return charges.create(item_bytes(to_item(name_of(key), value)), 0)


def keys_name(series: str, number: int) -> str:
    """Return the id of the item with the keys of an acknowledged batch, the *number*-th, from 1, of its series."""
    return f"{series}-{number}"
