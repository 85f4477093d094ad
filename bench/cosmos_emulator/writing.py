"""Single writes of items: each changes one document and tells its status and its charge; nothing is limited here."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from bench.cosmos_emulator.account import NEVER, expiry
from bench.cosmos_emulator.documents import Document, user_part
from bench.cosmos_emulator.errors import PARTITION_KEY_MISMATCH, Refused, bad
from bench.cosmos_emulator.hashing import Component
from bench.cosmos_emulator.partition_keys import key_of
from bench.cosmos_emulator.rids import document_rid
from bench.cosmos_emulator.turn import Turn

MOST_BYTES = 2 * 1024 * 1024
MOST_ID_BYTES = 1023
FORBIDDEN_IN_IDS = frozenset("/\\?#")


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did."""

    status: int
    document: Document
    charge_ru: float


def create(turn: Turn, value: Component, item: dict[str, Any]) -> Written:
    """Make a new item; 409 where there is one of its id and partition key."""
    name, key = identity(turn, value, item)
    if (found := turn.live(name, key)) is not None:
        message = "Entity with the specified id already exists in the system."
        raise Refused(409, message, charge_ru=turn.account.charges.refused_write(found.size))
    return _insert(turn, value, name, key, item)


def upsert(turn: Turn, value: Component, item: dict[str, Any], if_match: str) -> Written:
    """Make an item or put it in the place of another."""
    name, key = identity(turn, value, item)
    found = turn.live(name, key)
    if found is None:
        return _insert(turn, value, name, key, item)
    check_match(turn, found, if_match)
    return _put(turn, found, item)


def replace(turn: Turn, value: Component, name: str, item: dict[str, Any], if_match: str) -> Written:
    """Put an item in the place of the one of its id; 404 where there is none."""
    own, key = identity(turn, value, item)
    if own != name:
        raise bad("the id of an item cannot be changed")
    found = existing(turn, name, key)
    check_match(turn, found, if_match)
    return _put(turn, found, item)


def amend(turn: Turn, found: Document, item: dict[str, Any], operations: int) -> Written:
    """Put what a patch of so many operations made in the place of what it was made of."""
    name, key = identity(turn, turn.container.definition.of_item(item), item)
    if (name, key) != (found.id, found.key):
        raise bad("a patch cannot change the id or the partition key of an item")
    return _put(turn, found, item, operations)


def delete(turn: Turn, value: Component, name: str, if_match: str) -> Written:
    """Delete an item; 404 where there is none."""
    found = existing(turn, name, key_of(value))
    check_match(turn, found, if_match)
    charge_ru = turn.account.charges.delete(found.size, found.terms)
    found.partition.lsn += 1
    turn.container.documents.remove(found)
    return Written(204, found, charge_ru)


def existing(turn: Turn, name: str, key: bytes) -> Document:
    """Find an item; 404 where there is none."""
    found = turn.live(name, key)
    if found is None:
        raise not_found(turn)
    return found


def not_found(turn: Turn) -> Refused:
    """Say that there is no such item; that, too, is charged."""
    charge_ru = turn.account.charges.not_found(strong=turn.strong)
    return Refused(404, "Entity with the specified id does not exist in the system.", charge_ru=charge_ru)


def check_match(turn: Turn, found: Document, if_match: str) -> None:
    """Refuse with 412 where an item is not what the caller has seen."""
    if if_match not in ("", "*") and if_match.strip('"') != found.etag.strip('"'):
        message = "Operation cannot be performed because one of the specified precondition is not met."
        raise Refused(412, message, charge_ru=turn.account.charges.refused_write(found.size))


def identity(turn: Turn, value: Component, item: Mapping[str, Any]) -> tuple[str, bytes]:
    """Return the id and the key of an item that is to be written; refuses what cannot be one."""
    name = item.get("id")
    if not isinstance(name, str) or not name:
        raise bad("an item needs an id that is a string and not empty")
    if len(name.encode()) > MOST_ID_BYTES or FORBIDDEN_IN_IDS & set(name):
        raise bad(f"an id has at most {MOST_ID_BYTES} bytes and none of / \\ ? #")
    ttl = item.get("ttl")
    if ttl is not None and (type(ttl) is not int or (ttl < 1 and ttl != -1) or ttl >= 1 << 31):
        raise bad("ttl must be a positive number of seconds, or -1")
    key = key_of(value)
    if key_of(turn.container.definition.of_item(item)) != key:
        message = "PartitionKey extracted from document doesn't match the one specified in the header."
        raise bad(message, PARTITION_KEY_MISMATCH)
    return name, key


def _insert(turn: Turn, value: Component, name: str, key: bytes, item: dict[str, Any]) -> Written:
    documents = turn.container.documents
    partition = turn.container.partitions.of(turn.container.definition.effective(value))
    made = Document(name, key, documents.next_serial(), partition)
    charge_ru = _store(turn, made, user_part(item))
    documents.add(made)
    return Written(201, made, charge_ru)


def _put(turn: Turn, found: Document, item: dict[str, Any], operations: int | None = None) -> Written:
    return Written(200, found, _store(turn, found, user_part(item), operations))


def _store(turn: Turn, document: Document, item: dict[str, Any], operations: int | None = None) -> float:
    """Write *item* into *document*, and return the charge; nothing has changed where it is refused."""
    container, charges = turn.container, turn.account.charges
    terms = container.policy.terms(item)
    before = document.size
    gone = added = len(terms)
    if document.body is not None and not container.policy.covers_nothing:
        old = container.policy.terms(user_part(document.parsed()))
        gone, added = len(old - terms), len(terms - old)
    etag, ts = turn.account.etag(), int(turn.now)
    body, size = _stored(turn, document, item, etag, ts)
    if document.body is None:
        document.size = size
        charge_ru = charges.create(size, added)
    else:
        container.documents.resize(document, size)
        charge_ru = charges.replace(before, size, gone, added)
        if operations is not None:
            charge_ru = charges.patch(before, size, gone, added, operations)
    document.body, document.etag, document.ts, document.terms = body, etag, ts, len(terms)
    document.ttl = item.get("ttl")
    document.partition.lsn += 1
    expires_at = expiry(container, document)
    if expires_at != NEVER:
        heapq.heappush(container.expiring, (expires_at, document.serial, document))
    return charge_ru


def _stored(turn: Turn, document: Document, item: dict[str, Any], etag: str, ts: int) -> tuple[bytes, int]:
    try:
        user_bytes = orjson.dumps(item)
    except orjson.JSONEncodeError as error:
        raise bad(f"the item cannot be stored: {error}") from None
    container = turn.container
    rid = document_rid(container.database.number, container.number, document.serial)
    told = etag.replace('"', '\\"')
    body = b'%b,"_rid":"%b","_self":"%bdocs/%b/","_etag":"%b","_attachments":"attachments/","_ts":%d}' % (
        user_bytes[:-1], rid.encode(), container.link.encode(), rid.encode(), told.encode(), ts,
    )  # fmt: skip
    if len(body) > MOST_BYTES:
        raise Refused(413, "Request size is too large: an item has at most 2 MB.")
    return body, len(body) if turn.account.charges.system_properties else len(user_bytes)
