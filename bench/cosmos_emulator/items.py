"""Point operations on items and batches of them: each is admitted by its partition, carried out, charged and answered.

https://learn.microsoft.com/azure/cosmos-db/nosql/transactional-batch: a batch has at most 100 operations and 2 MB, on
one partition key, which all take effect, or none.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.account import CONSISTENCIES, STRONG, Container, EmulatedAccount
from hotplate.bench.cosmos_emulator.documents import Document, resource_id, without_system_properties
from hotplate.bench.cosmos_emulator.http import (
    HttpError,
    HttpResponse,
    Request,
    Substatus,
    bad_request,
    parse_json,
    parse_object,
)
from hotplate.bench.cosmos_emulator.partitions import HEADER, KeyValue, Partition, effective_key, encode

MAX_ITEM_BYTES = 2 * 1024 * 1024
MAX_ID_BYTES = 1023
MAX_BATCH_OPERATIONS = 100
FORBIDDEN_IN_IDS = frozenset("/\\?#")
ALREADY_EXISTS = "Entity with the specified id already exists in the system."
RANGE_HEADER = b"x-ms-documentdb-partitionkeyrangeid"
# The result of an operation that was not tried, as another had failed.
NOT_RUN: dict[str, Any] = {"statusCode": 424, "requestCharge": 0.0}


@dataclass(slots=True)
class RequestContext:
    """One request to one container; lives as long as the request."""

    account: EmulatedAccount
    container: Container
    request: Request
    now: float
    strong: bool
    """Whether reads are charged as for strong or bounded staleness."""

    def existing(self, item_id: str, key: bytes) -> Document:
        """Find an item; 404 if it does not exist."""
        document = self.container.documents.get(item_id, key)
        if document is None:
            raise self.not_found()
        return document

    def not_found(self) -> HttpError:
        """Make the error for an item that does not exist, which is charged, too."""
        charge_ru = self.account.charges.not_found(strong=self.strong)
        return HttpError(404, "Entity with the specified id does not exist in the system.", charge_ru=charge_ru)

    def partition_of(self, value: KeyValue) -> Partition:
        """Return the partition of a key; 410 where the request names another, which must have split."""
        partition = self.container.partitions.of(effective_key(value))
        range_id = self.request.headers.get(RANGE_HEADER)
        if range_id is not None and range_id.decode("latin-1") != partition.id:
            message = "the partition key lies in another range; read the ranges again"
            raise HttpError(410, message, Substatus.PARTITION_KEY_RANGE_GONE)
        return partition

    def key_value(self) -> KeyValue:
        """Return the partition key of the request's header."""
        return self.container.definition.of_header(self.request.headers.get(HEADER))

    def charge_error(self, partition: Partition, error: HttpError) -> HttpError:
        """Charge what a failed request cost, and add the headers of its partition."""
        partition.charge_read(self.now, self.request.region, error.charge_ru)
        error.headers |= self.headers(partition)
        return error

    def headers(self, partition: Partition, etag: str | None = None) -> dict[str, str]:
        """Return the headers of responses from one partition."""
        headers = {
            "x-ms-session-token": partition.session_token,
            "lsn": str(partition.lsn),
            "x-ms-documentdb-partitionkeyrangeid": partition.id,
            "x-ms-alt-content-path": self.container.named_link,
            "x-ms-content-path": self.container.rid,
        }
        if etag is not None:
            headers["etag"] = etag
        return headers


def context_of(account: EmulatedAccount, container: Container, request: Request, now: float) -> RequestContext:
    """Check what a request says of its container and its consistency, and return its context."""
    rid = request.headers.get(b"x-ms-cosmos-intended-collection-rid")
    if rid is not None and rid.decode("latin-1") != container.rid:
        raise bad_request(
            "the container was deleted and created again since its _rid was read", Substatus.COLLECTION_RID_MISMATCH
        )
    level = account.consistency
    header = request.headers.get(b"x-ms-consistency-level")
    if header is not None:
        level = header.decode("latin-1")
        if level not in CONSISTENCIES:
            raise bad_request(f"no such consistency level; there are {', '.join(CONSISTENCIES)}")
        if CONSISTENCIES.index(level) < CONSISTENCIES.index(account.consistency):
            raise bad_request(f"consistency {level} is stronger than the account's, {account.consistency}")
    return RequestContext(account, container, request, now, level in STRONG)


def read(context: RequestContext, item_id: str) -> HttpResponse:
    """Read one item by its id and partition key; 304 where the caller has it already."""
    request, value = context.request, context.key_value()
    document = context.container.documents.get(item_id, encode(value))
    partition = document.partition if document is not None else context.partition_of(value)
    partition.admit(context.now, request.region)
    if document is None:
        raise context.charge_error(partition, context.not_found())
    charge_ru = context.account.read_ru(document.size, strong=context.strong)
    partition.charge_read(context.now, request.region, charge_ru)
    headers = context.headers(partition, document.etag)
    known = request.headers.get(b"if-none-match")
    if known is not None and known.decode("latin-1").strip('"') == document.etag.strip('"'):
        return HttpResponse(304, b"", headers, charge_ru)
    return HttpResponse(200, document.body or b"", headers, charge_ru)


@dataclass(frozen=True, slots=True)
class ItemWrite:
    """What a write did to which document, and its charge."""

    status: int
    document: Document
    charge_ru: float


# What a request or one operation of a batch does: context, partition key, id, resource body, If-Match.
Write = Callable[[RequestContext, KeyValue, str, dict[str, Any], str], ItemWrite]


def write(context: RequestContext, item_id: str, operation: Write) -> HttpResponse:
    """Carry out one write as a request of its own."""
    request, resource = context.request, dict[str, Any]()
    if operation is not delete:
        resource = parse_object(request.body)
    value = context.key_value()
    partition = context.partition_of(value)
    partition.admit(context.now, request.region)
    try:
        result = operation(context, value, item_id, resource, request.header(b"if-match"))
    except HttpError as error:
        raise context.charge_error(partition, error) from None
    partition.charge_write(context.now, result.charge_ru)
    is_minimal = b"return=minimal" in request.headers.get(b"prefer", b"").lower()
    body = b"" if is_minimal else result.document.body or b""
    return HttpResponse(result.status, body, context.headers(partition, result.document.etag), result.charge_ru)


def create(context: RequestContext, value: KeyValue, _id: str, item: dict[str, Any], _if_match: str) -> ItemWrite:
    """Create an item; 409 if there is one of its id and partition key."""
    item_id, key = _checked_identity(context, value, item)
    if (found := context.container.documents.get(item_id, key)) is not None:
        raise HttpError(409, ALREADY_EXISTS, charge_ru=context.account.charges.refused_write(found.size))
    return _insert(context, value, item_id, key, item)


def upsert(context: RequestContext, value: KeyValue, _id: str, item: dict[str, Any], if_match: str) -> ItemWrite:
    """Create an item or replace it."""
    item_id, key = _checked_identity(context, value, item)
    found = context.container.documents.get(item_id, key)
    if found is None:
        return _insert(context, value, item_id, key, item)
    return _store(context, _matching(context, found, if_match), item)


def replace(context: RequestContext, value: KeyValue, item_id: str, item: dict[str, Any], if_match: str) -> ItemWrite:
    """Replace the item of an id; 404 if it does not exist."""
    own_id, key = _checked_identity(context, value, item)
    if own_id != item_id:
        raise bad_request("the id of an item cannot be changed")
    return _store(context, _matching(context, context.existing(item_id, key), if_match), item)


def delete(context: RequestContext, value: KeyValue, item_id: str, _: dict[str, Any], if_match: str) -> ItemWrite:
    """Delete an item; 404 if it does not exist."""
    found = _matching(context, context.existing(item_id, encode(value)), if_match)
    charge_ru = context.account.charges.delete(found.size, found.terms)
    found.partition.lsn += 1
    context.container.documents.remove(found)
    return ItemWrite(204, found, charge_ru)


def _matching(context: RequestContext, found: Document, if_match: str) -> Document:
    """Return *found* if it has the etag of If-Match; 412 if it has another."""
    if if_match not in ("", "*") and if_match.strip('"') != found.etag.strip('"'):
        message = "Operation cannot be performed because one of the specified precondition is not met."
        raise HttpError(412, message, charge_ru=context.account.charges.refused_write(found.size))
    return found


def _checked_identity(context: RequestContext, value: KeyValue, item: dict[str, Any]) -> tuple[str, bytes]:
    """Return the id and the key of an item that is to be written, if it can be one."""
    item_id = item.get("id")
    if not isinstance(item_id, str) or not item_id:
        raise bad_request("an item needs an id that is a string and not empty")
    if len(item_id.encode()) > MAX_ID_BYTES or FORBIDDEN_IN_IDS & set(item_id):
        raise bad_request(f"an id has at most {MAX_ID_BYTES} bytes, without / \\ ? #")
    key = encode(value)
    if encode(context.container.definition.of_item(item)) != key:
        message = "PartitionKey extracted from document doesn't match the one specified in the header."
        raise bad_request(message, Substatus.PARTITION_KEY_MISMATCH)
    return item_id, key


def _insert(context: RequestContext, value: KeyValue, item_id: str, key: bytes, item: dict[str, Any]) -> ItemWrite:
    documents = context.container.documents
    partition = context.container.partitions.of(effective_key(value))
    made = Document(item_id, key, documents.next_serial(), partition)
    result = _store(context, made, item)
    documents.add(made)
    return result


def _store(context: RequestContext, document: Document, item: dict[str, Any]) -> ItemWrite:
    """Write *item* into a document, new or present, and charge it; nothing has changed if it is refused."""
    container, charges = context.container, context.account.charges
    item = without_system_properties(item)
    terms = container.policy.terms(item)
    before, is_new = document.size, document.body is None
    removed = added = len(terms)
    if not is_new and not container.policy.indexes_nothing:
        old = container.policy.terms(without_system_properties(document.parsed()))
        removed, added = len(old - terms), len(terms - old)
    etag = context.account.next_etag()
    body, size = _stored_form(context, document, item, etag, int(context.now))
    charge_ru = charges.create(size, added) if is_new else charges.replace(before, size, removed, added)
    container.documents.resize(document, size)
    document.body, document.etag, document.terms = body, etag, len(terms)
    document.partition.lsn += 1
    return ItemWrite(201 if is_new else 200, document, charge_ru)


def _stored_form(
    context: RequestContext, document: Document, item: dict[str, Any], etag: str, ts: int
) -> tuple[bytes, int]:
    """Return an item with its system properties as bytes, and the size that is charged."""
    try:
        user_bytes = orjson.dumps(item)
    except orjson.JSONEncodeError as error:
        raise bad_request(f"the item cannot be stored: {error}") from None
    container = context.container
    rid = resource_id(container.rid_bytes + document.serial.to_bytes(8, "little"))
    escaped = etag.replace('"', '\\"')
    body = b'%b,"_rid":"%b","_self":"%bdocs/%b/","_etag":"%b","_attachments":"attachments/","_ts":%d}' % (
        user_bytes[:-1], rid.encode(), container.link.encode(), rid.encode(), escaped.encode(), ts,
    )  # fmt: skip
    if len(body) > MAX_ITEM_BYTES:
        raise HttpError(413, "Request size is too large: an item has at most 2 MB.")
    return body, len(body) if context.account.charges.system_properties else len(user_bytes)


# By the verbs of operations, and of those in a batch in lower case.
WRITES: dict[str, Write] = {"create": create, "upsert": upsert, "replace": replace, "delete": delete}


def batch(context: RequestContext) -> HttpResponse:
    """Run a batch: 200 with one result for each operation, or 207 with the one that failed and 424 for the others."""
    operations = _operations(context)
    if context.request.header(b"x-ms-cosmos-batch-atomic").lower() == "false":
        raise bad_request("bulk requests are not emulated: send operations one by one, or as a transactional batch")
    value = context.key_value()
    partition = context.partition_of(value)
    partition.admit(context.now, context.request.region)
    results, undo = list[dict[str, Any]](), list[Callable[[], None]]()
    charge_ru = 0.0
    for operation in operations:
        try:
            results.append(_run_of_batch(context, value, operation, undo))
            charge_ru += results[-1]["requestCharge"]
        except HttpError as error:
            for restore in reversed(undo):
                restore()
            others = [NOT_RUN] * len(operations)
            others[len(results)] = _failure(error)
            charge_ru = round(charge_ru + error.charge_ru, 2)
            partition.charge_read(context.now, context.request.region, charge_ru)
            return HttpResponse(207, orjson.dumps(others), context.headers(partition), charge_ru)
    charge_ru = round(charge_ru, 2)
    partition.charge_write(context.now, charge_ru)
    return HttpResponse(200, orjson.dumps(results), context.headers(partition), charge_ru)


def _operations(context: RequestContext) -> list[dict[str, Any]]:
    """Return the operations of a batch, checked."""
    operations = parse_json(context.request.body, "the batch")
    if not isinstance(operations, list) or not 1 <= len(operations) <= MAX_BATCH_OPERATIONS:
        raise bad_request(f"a batch has 1 to {MAX_BATCH_OPERATIONS} operations")
    if not all(isinstance(operation, dict) for operation in operations):
        raise bad_request("each operation of a batch is an object")
    return operations


def _failure(error: HttpError) -> dict[str, Any]:
    """Return the result of an operation that failed."""
    return {
        "statusCode": error.status,
        "subStatusCode": error.substatus,
        "message": error.message,
        "requestCharge": error.charge_ru,
    }


def _run_of_batch(
    context: RequestContext, value: KeyValue, operation: dict[str, Any], undo: list[Callable[[], None]]
) -> dict[str, Any]:
    """Run one operation of a batch, and note how to undo it."""
    kind, item_id, resource = operation.get("operationType"), str(operation.get("id")), operation.get("resourceBody")
    if kind == "Read":
        document = context.existing(item_id, encode(value))
        status, charge_ru = 200, context.account.charges.read(document.size, strong=context.strong)
    else:
        write = WRITES.get(kind.lower()) if isinstance(kind, str) and kind.istitle() else None
        if write is None:
            raise bad_request("operationType must be Create, Upsert, Replace, Delete or Read")
        if kind == "Delete":
            resource = {}
        if not isinstance(resource, dict):
            raise bad_request("an operation that writes needs a resourceBody")
        own_id = str(resource.get("id")) if write in (create, upsert) else item_id
        undo.append(_undo_of(context, own_id, encode(value)))
        result = write(context, value, item_id, resource, str(operation.get("ifMatch") or ""))
        status, document, charge_ru = result.status, result.document, result.charge_ru
    if kind == "Delete":
        return {"statusCode": status, "requestCharge": charge_ru}
    body = orjson.Fragment(document.body or b"null")
    return {"statusCode": status, "requestCharge": charge_ru, "eTag": document.etag, "resourceBody": body}


def _undo_of(context: RequestContext, item_id: str, key: bytes) -> Callable[[], None]:
    """Return a function that puts an item back as it is now."""
    container, saved = context.container, copy.copy(context.container.documents.get(item_id, key))

    def undo() -> None:
        if (present := container.documents.get(item_id, key)) is not None:
            container.documents.remove(present)
        if saved is not None:
            container.documents.restore(saved)

    return undo
