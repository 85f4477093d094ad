"""Point operations on items."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from hotplate.bench.cosmos_emulator.messages import HttpError, HttpResponse, Request, Substatus
from hotplate.bench.cosmos_emulator.partitions import Document, Partition, encode, key_of
from hotplate.bench.cosmos_emulator.resources import (
    ALREADY_EXISTS,
    CONSISTENCIES,
    Container,
    EmulatedAccount,
    resource_id,
    terms_of,
)

MAX_ITEM_BYTES = 2 * 1024 * 1024
MAX_ID_BYTES = 1023
FORBIDDEN_IN_IDS = frozenset("/\\?#")
SYSTEM_PROPERTIES = ("_rid", "_self", "_etag", "_attachments", "_ts")
RANGE_HEADER = b"x-ms-documentdb-partitionkeyrangeid"
# Levels that double the charge of reads.
STRONG = ("Strong", "BoundedStaleness")


@dataclass(slots=True)
class RequestContext:
    """One request to one container."""

    account: EmulatedAccount
    container: Container
    request: Request
    now: float
    strong: bool  # charge reads as strong or bounded staleness

    def not_found(self) -> HttpError:
        """Return the charged error for an absent item."""
        charge_ru = self.account.charges.not_found(strong=self.strong)
        return HttpError(404, "Entity with the specified id does not exist in the system.", charge_ru=charge_ru)

    def partition_of(self, key: bytes) -> Partition:
        """Return a key's partition; 410 if the request names another."""
        partition = self.container.partitions.of(key)
        range_id = self.request.headers.get(RANGE_HEADER)
        if range_id is not None and range_id.decode("latin-1") != partition.id:
            message = "the partition key lies in another range; read the ranges again"
            raise HttpError(410, message, Substatus.PARTITION_KEY_RANGE_GONE)
        return partition

    def charge_error(self, partition: Partition, error: HttpError) -> HttpError:
        """Charge a failed request; add the partition's headers."""
        partition.charge(self.now, error.charge_ru, self.request.region)
        error.headers |= self.headers(partition)
        return error

    def headers(self, partition: Partition, etag: str | None = None) -> dict[str, str]:
        """Return a partition's response headers."""
        headers = {} if etag is None else {"etag": etag}
        headers["x-ms-session-token"] = partition.session_token
        headers["x-ms-documentdb-partitionkeyrangeid"] = partition.id
        headers["x-ms-alt-content-path"] = self.container.named_link
        headers["x-ms-content-path"] = self.container.rid
        return headers


def context_of(account: EmulatedAccount, container: Container, request: Request, now: float) -> RequestContext:
    """Return the context of a request for items of *container*: what its operation needs, with the time *now*.

    Raises 400 for a consistency level that is unknown or stronger than the account's. CONSISTENCIES are in descending
    order of strength.
    """
    level = request.header(b"x-ms-consistency-level") or account.consistency
    if level not in CONSISTENCIES[CONSISTENCIES.index(account.consistency) :]:
        raise HttpError(400, f"consistency {level} is unknown, or stronger than the account's, {account.consistency}")
    return RequestContext(account, container, request, now, level in STRONG)


def read(context: RequestContext, item_id: str) -> HttpResponse:
    """Read one item, and charge its partition.

    Returns 304 without a body, charged as an empty item, if the item still has the etag of `If-None-Match`. Raises
    404 for an absent item, 429 if the partition's budget of RU/s is spent.
    """
    request = context.request
    key = key_of(request)
    document = context.container.documents.get(item_id, key)
    partition = document.partition if document is not None else context.partition_of(key)
    partition.admit(context.now, request.region)
    if document is None:
        raise context.charge_error(partition, context.not_found())  # absent items are charged, too

    status = 200
    body = document.body
    size = document.size
    if _is_unchanged(request, document):
        status = 304
        body = b""
        size = 0

    charge_ru = context.account.charges.read(size, strong=context.strong)
    partition.charge(context.now, charge_ru, request.region)
    return HttpResponse(status, body, context.headers(partition, document.etag), charge_ru)


def _is_unchanged(request: Request, document: Document) -> bool:
    """Return whether the request has an `If-None-Match` that the document meets."""
    etag = request.headers.get(b"if-none-match")
    return etag is not None and etag.strip(b'"') in (b"*", document.etag.strip('"').encode())


def write(context: RequestContext, item_id: str, verb: str) -> HttpResponse:
    """Create, upsert, replace or delete an item, and charge its partition, also for a refused write.

    item_id  id in the path; empty for a create or an upsert, whose id is in the body
    verb     `create`, `upsert`, `replace` or `delete`

    Raises an HttpError for an invalid item, a violated condition, or 429 if the budget of RU/s is spent.
    """
    request = context.request
    item = {} if verb == "delete" else request.object()
    key = key_of(request)
    partition = context.partition_of(key)
    partition.admit(context.now, request.region)

    try:
        if verb != "delete":
            item_id = _checked_id(context, key, item, replaced=item_id if verb == "replace" else None)
        stored = _stored_document(context, verb, key, item_id)
        if stored is not None and verb == "delete":  # without a stored item, a delete was refused
            written = _delete_document(context, stored)
        else:
            written = _store_document(context, key, item, stored)
    except HttpError as error:
        raise context.charge_error(partition, error) from None
    partition.charge(context.now, written.charge_ru)

    body = written.document.body
    if verb == "delete" or b"return=minimal" in request.headers.get(b"prefer", b"").lower():
        body = b""
    headers = context.headers(partition, written.document.etag)
    return HttpResponse(written.status, body, headers, written.charge_ru)


class Written(NamedTuple):
    """Status of a successful write, the document that was stored or deleted, and the charge."""

    status: int
    document: Document
    charge_ru: float


def _stored_document(context: RequestContext, verb: str, key: bytes, item_id: str) -> Document | None:
    """Return the stored document that a write meets; None if a create or an upsert finds none.

    Raises 404 if a replace or a delete finds none, 409 if a create finds one, and 412 if the document has another etag
    than `If-Match`. *key* is the encoded partition key.
    """
    document = context.container.documents.get(item_id, key)
    if document is None:
        if verb in ("replace", "delete"):
            raise context.not_found()
        return None

    if verb == "create":
        refused_ru = context.account.charges.refused_write(document.size)
        raise HttpError(409, ALREADY_EXISTS, charge_ru=refused_ru)

    if_match = context.request.header(b"if-match")
    if if_match not in ("", "*") and if_match.strip('"') != document.etag.strip('"'):
        message = "Operation cannot be performed because one of the specified precondition is not met."
        refused_ru = context.account.charges.refused_write(document.size)
        raise HttpError(412, message, charge_ru=refused_ru)
    return document


def _delete_document(context: RequestContext, document: Document) -> Written:
    context.container.documents.remove(document)
    document.partition.lsn += 1
    return Written(204, document, context.account.charges.delete(document.size, len(document.terms)))


def _checked_id(context: RequestContext, key: bytes, item: dict[str, Any], *, replaced: str | None) -> str:
    """Return the id in an item's JSON.

    Raises 400 for an invalid id, for a partition key that is not *key*, the encoded one of the request's header, and
    for another id than *replaced*, the id in the path of a replace (None for other writes).
    """
    item_id = item.get("id")
    if not isinstance(item_id, str) or not item_id:
        raise HttpError(400, "an item needs an id that is a string and not empty")
    if len(item_id.encode()) > MAX_ID_BYTES or FORBIDDEN_IN_IDS & set(item_id):
        raise HttpError(400, f"an id has at most {MAX_ID_BYTES} bytes, without / \\ ? #")

    if encode(item.get(context.container.key_property, {})) != key:
        message = "PartitionKey extracted from document doesn't match the one specified in the header."
        raise HttpError(400, message, Substatus.PARTITION_KEY_MISMATCH)

    if replaced is not None and item_id != replaced:
        raise HttpError(400, "the id of an item cannot be changed")
    return item_id


def _store_document(context: RequestContext, key: bytes, item: dict[str, Any], old: Document | None) -> Written:
    """Store an item in the partition of its encoded key, and return the document with its status and charge in RU.

    A replaced document, *old*, keeps its serial, the number in the order of creation. The charge grows with the size
    and with the terms, indexed values, that are new or go away.
    """
    container = context.container
    charges = context.account.charges
    item = {name: value for name, value in item.items() if name not in SYSTEM_PROPERTIES}
    if old is None:
        partition = container.partitions.of(key)
        serial = container.documents.next_serial()
    else:
        partition = old.partition
        serial = old.serial
    etag = context.account.next_etag()
    body, size = _json_with_system_properties(context, item, serial, etag)
    terms = frozenset(terms_of(item)) if container.is_indexed else frozenset()

    document = Document(
        id=item["id"], key=key, serial=serial, partition=partition, body=body, size=size, terms=terms, etag=etag
    )
    container.documents.put(document)
    partition.lsn += 1  # the log sequence number, for session tokens

    if old is None:
        return Written(201, document, charges.create(size, len(terms)))
    charge_ru = charges.replace(old.size, size, len(old.terms - terms), len(terms - old.terms))
    return Written(200, document, charge_ru)


def _json_with_system_properties(
    context: RequestContext, item: dict[str, Any], serial: int, etag: str
) -> tuple[bytes, int]:
    """Return an item's JSON with the service's properties (`_rid`, `_etag`, …) at its end, and its charged bytes.

    The account's charges decide whether these properties count. *serial* is the item's number in the container.
    Raises 400 for values without JSON, 413 above MAX_ITEM_BYTES.
    """
    try:
        user_bytes = orjson.dumps(item)
    except orjson.JSONEncodeError as error:
        raise HttpError(400, f"the item cannot be stored: {error}") from None

    container = context.container
    rid = resource_id(container.rid_bytes + serial.to_bytes(8, "little"))
    json_etag = etag.replace('"', '\\"')  # an etag is in quotes
    body = b'%b,"_rid":"%b","_self":"%bdocs/%b/","_etag":"%b","_attachments":"attachments/","_ts":%d}' % (
        user_bytes[:-1], rid.encode(), container.link.encode(), rid.encode(), json_etag.encode(), int(context.now),
    )  # fmt: skip
    if len(body) > MAX_ITEM_BYTES:
        raise HttpError(413, "Request size is too large: an item has at most 2 MB.")
    return body, len(body) if context.account.charges.size_system_properties else len(user_bytes)
