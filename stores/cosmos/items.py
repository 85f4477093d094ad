"""Items of Cosmos DB: their containers, their ids, and values as JSON.

A row's id and partition key is `KIND.` and the ID in base64url; ids of other items have no dot. A value is stored as
text if it is valid UTF-8 and not longer than in base64, otherwise as base64.
"""

import re
from base64 import urlsafe_b64encode
from binascii import Error as NotBase64
from binascii import a2b_base64, b2a_base64
from functools import lru_cache
from typing import Any

import orjson

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.cosmos.charges import SYSTEM_BYTES
from hotplate.stores.encoding import check_kind
from hotplate.stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreFull

CosmosItem = dict[str, Any]
"""An item as JSON; the names of system properties, which responses have, begin with `_`."""

AnyRef = ReleaseRef | DraftRef

# Of every container: items are read by id, so nothing is indexed.
DEFINITION: dict[str, Any] = {
    "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2},
    "indexingPolicy": {"indexingMode": "none", "automatic": False},
}

# The container of the catalogue, and its id there.
CONTROL = "hotplate"
CATALOGUE = "catalogue"
# Beginning of the name of a release's container.
CONTAINER = "release-"
INCARNATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

# https://learn.microsoft.com/azure/cosmos-db/concepts-limits
MAX_ITEM_BYTES = 2 << 20


@lru_cache(64)
def container_of(release: AnyRef) -> str:
    """Return the container of a release; ReleaseNotFound for an invalid incarnation."""
    if not INCARNATION.fullmatch(release.incarnation):
        raise ReleaseNotFound(f"release {release.id[:80]!r} is not in this store: no release has such an id")
    return CONTAINER + release.incarnation


def name_of(key: str) -> str:
    """Return the id of a row's item; StoreMisused for an unknown kind.

    A key with lone surrogates gets an id that no row has.
    """
    kind, colon, identifier = key.partition(":")
    encoded = urlsafe_b64encode(identifier.encode("utf-8", "surrogatepass")).decode()
    return f"{check_kind(kind if colon else '').replace('@', '.')}.{encoded.rstrip('=')}"


def to_item(name: str, value: bytes) -> CosmosItem:
    """Encode a value as an item with the id *name*: as text in `t` if that is not longer than base64 in `b`.

    For example, `b"[1]"` becomes `{"id": name, "t": "[1]"}`; compressed bytes are no text, so they become base64.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None

    if text is not None:
        text_length = len(orjson.dumps(text)) - 2  # escaped, without quotes
        base64_length = (len(value) + 2) // 3 * 4
        if text_length <= base64_length:
            return {"id": name, "t": text}
    return {"id": name, "b": b2a_base64(value, newline=False).decode()}


def value_of(item: CosmosItem) -> bytes:
    """Decode an item; ReleaseCorrupt if `to_item` did not make it."""
    try:
        text = item.get("t")
        if text is not None:
            return bytes(text.encode())
        return a2b_base64(item["b"], strict_mode=True)
    except (KeyError, AttributeError, TypeError, NotBase64, ValueError) as error:
        raise ReleaseCorrupt(f"the item {item.get('id')!r} was not written by hotplate; publish again") from error


def item_bytes(item: CosmosItem) -> int:
    """Return the size as stored, system properties included; StoreFull above the service's limit."""
    size = len(orjson.dumps(without_system_properties(item))) + SYSTEM_BYTES
    if size > MAX_ITEM_BYTES:
        raise StoreFull(
            f"the row {item['id']} takes {size:,} bytes as an item, and Cosmos DB stores {MAX_ITEM_BYTES:,} at most; "
            f"publish shorter lists"
        )
    return size


def without_system_properties(item: CosmosItem) -> CosmosItem:
    """Return an item as it was sent to the service."""
    return {name: value for name, value in item.items() if name[0] != "_"}
