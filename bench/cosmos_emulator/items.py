"""Point operations on items, and transactional batches.

A batch has at most 100 operations on one partition key, which all take effect, or none:
https://learn.microsoft.com/azure/cosmos-db/nosql/transactional-batch
"""

from dataclasses import dataclass
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.http import HttpError, HttpResponse, Request, Substatus, parse_json
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
MAX_BATCH_OPERATIONS = 100
BATCH_OPERATIONS = ("Create", "Upsert", "Replace", "Delete", "Read")
FORBIDDEN_IN_IDS = frozenset("/\\?#")
SYSTEM_PROPERTIES = ("_rid", "_self", "_etag", "_attachments", "_ts")
RANGE_HEADER = b"x-ms-documentdb-partitionkeyrangeid"
# Levels that double the charge of reads.
STRONG = ("Strong", "BoundedStaleness")
# Result of the other operations of a failed batch.
NOT_RUN: dict[str, Any] = {"statusCode": 424, "requestCharge": 0.0}


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
        """Return a key's partition; raises 410 if the request names another."""
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
    """Return a context; raises 400 for a stale resource id or an invalid consistency level."""
    rid = request.headers.get(b"x-ms-cosmos-intended-collection-rid")
    if rid is not None and rid.decode("latin-1") != container.rid:
        message = "the container was deleted and created again since its _rid was read"
        raise HttpError(400, message, Substatus.COLLECTION_RID_MISMATCH)
    level = request.header(b"x-ms-consistency-level") or account.consistency
    if level not in CONSISTENCIES[CONSISTENCIES.index(account.consistency) :]:
        raise HttpError(400, f"consistency {level} is unknown, or stronger than the account's, {account.consistency}")
    return RequestContext(account, container, request, now, level in STRONG)


def read(context: RequestContext, item_id: str) -> HttpResponse:
    """Read one item."""
    request, key = context.request, key_of(context.request)
    document = context.container.documents.get(item_id, key)
    partition = document.partition if document is not None else context.partition_of(key)
    partition.admit(context.now, request.region)
    if document is None:
        raise context.charge_error(partition, context.not_found())
    charge_ru = context.account.read_ru(document.size, strong=context.strong)
    partition.charge(context.now, charge_ru, request.region)
    return HttpResponse(200, document.body, context.headers(partition, document.etag), charge_ru)


def write(context: RequestContext, item_id: str, verb: str) -> HttpResponse:
    """Create, upsert, replace or delete an item."""
    request = context.request
    item = {} if verb == "delete" else request.object()
    key = key_of(request)
    partition = context.partition_of(key)
    partition.admit(context.now, request.region)
    try:
        status, document, charge_ru = _write(context, verb, key, item_id, item, if_match=request.header(b"if-match"))
    except HttpError as error:
        raise context.charge_error(partition, error) from None
    partition.charge(context.now, charge_ru)
    is_minimal = verb == "delete" or b"return=minimal" in request.headers.get(b"prefer", b"").lower()
    headers = context.headers(partition, document.etag)
    return HttpResponse(status, b"" if is_minimal else document.body, headers, charge_ru)


def _write(
    context: RequestContext, verb: str, key: bytes, item_id: str, item: dict[str, Any], *, if_match: str
) -> tuple[int, Document, float]:
    container, charges = context.container, context.account.charges
    if verb != "delete":
        given_id = _checked_id(context, key, item)
        if verb == "replace" and given_id != item_id:
            raise HttpError(400, "the id of an item cannot be changed")
        item_id = given_id
    found = container.documents.get(item_id, key)
    if found is None:
        if verb in ("replace", "delete"):
            raise context.not_found()
    elif verb == "create":
        raise HttpError(409, ALREADY_EXISTS, charge_ru=charges.refused_write(found.size))
    elif if_match not in ("", "*") and if_match.strip('"') != found.etag.strip('"'):
        message = "Operation cannot be performed because one of the specified precondition is not met."
        raise HttpError(412, message, charge_ru=charges.refused_write(found.size))
    if found is None or verb != "delete":
        return _store(context, key, item_id, item, found)
    container.documents.remove(found)
    found.partition.lsn += 1
    return 204, found, charges.delete(found.size, len(found.terms))


def _checked_id(context: RequestContext, key: bytes, item: dict[str, Any]) -> str:
    item_id = item.get("id")
    if not isinstance(item_id, str) or not item_id:
        raise HttpError(400, "an item needs an id that is a string and not empty")
    if len(item_id.encode()) > MAX_ID_BYTES or FORBIDDEN_IN_IDS & set(item_id):
        raise HttpError(400, f"an id has at most {MAX_ID_BYTES} bytes, without / \\ ? #")
    key_property = context.container.key_property
    if key_property not in item:
        raise HttpError(400, f"the item has no {key_property}, its partition key: that is not emulated")
    if encode(item[key_property]) != key:
        message = "PartitionKey extracted from document doesn't match the one specified in the header."
        raise HttpError(400, message, Substatus.PARTITION_KEY_MISMATCH)
    return item_id


def _store(
    context: RequestContext, key: bytes, item_id: str, item: dict[str, Any], found: Document | None
) -> tuple[int, Document, float]:
    """Store an item; nothing changes if it is refused."""
    container, charges = context.container, context.account.charges
    item = {name: value for name, value in item.items() if name not in SYSTEM_PROPERTIES}
    partition = found.partition if found else container.partitions.of(key)
    serial = found.serial if found else container.documents.next_serial()
    etag = context.account.next_etag()
    body, size = _stored_form(context, item, serial, etag)
    terms = frozenset(terms_of(item)) if container.is_indexed else frozenset()
    if found is None:
        charge_ru = charges.create(size, len(terms))
    else:
        charge_ru = charges.replace(found.size, size, len(found.terms - terms), len(terms - found.terms))
    document = Document(item_id, key, serial, partition, body, size, terms, etag)
    container.documents.put(document)
    partition.lsn += 1
    return 201 if found is None else 200, document, charge_ru


def _stored_form(context: RequestContext, item: dict[str, Any], serial: int, etag: str) -> tuple[bytes, int]:
    try:
        user_bytes = orjson.dumps(item)
    except orjson.JSONEncodeError as error:
        raise HttpError(400, f"the item cannot be stored: {error}") from None
    container = context.container
    rid = resource_id(container.rid_bytes + serial.to_bytes(8, "little"))
    escaped = etag.replace('"', '\\"')
    body = b'%b,"_rid":"%b","_self":"%bdocs/%b/","_etag":"%b","_attachments":"attachments/","_ts":%d}' % (
        user_bytes[:-1], rid.encode(), container.link.encode(), rid.encode(), escaped.encode(), int(context.now),
    )  # fmt: skip
    if len(body) > MAX_ITEM_BYTES:
        raise HttpError(413, "Request size is too large: an item has at most 2 MB.")
    return body, len(body) if context.account.charges.system_properties else len(user_bytes)


def batch(context: RequestContext) -> HttpResponse:
    """Run a batch: 200 with all results, or 207 with the failure and 424 for the others."""
    operations, key = parse_json(context.request.body, "the batch"), key_of(context.request)
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise HttpError(400, "a batch is a list of operations, which are objects")
    if not 1 <= len(operations) <= MAX_BATCH_OPERATIONS:
        raise HttpError(400, f"a batch has 1 to {MAX_BATCH_OPERATIONS} operations")
    if context.request.header(b"x-ms-cosmos-batch-atomic").lower() == "false":
        raise HttpError(400, "bulk requests are not emulated: send operations one by one, or as a transactional batch")
    partition = context.partition_of(key)
    partition.admit(context.now, context.request.region)
    results, before = list[dict[str, Any]](), dict[str, Document | None]()
    status = 200
    try:
        for operation in operations:
            results.append(_run_of_batch(context, key, operation, before))
    except HttpError as error:
        _restore(context, key, before)
        status, failed = 207, {"subStatusCode": error.substatus, "message": error.message}
        failed |= {"statusCode": error.status, "requestCharge": error.charge_ru}
        charge_ru = sum(result["requestCharge"] for result in results) + error.charge_ru
        results = [failed if number == len(results) else NOT_RUN for number in range(len(operations))]
    else:
        charge_ru = sum(result["requestCharge"] for result in results)
    partition.charge(context.now, charge_ru, context.request.region if status == 207 else None)
    return HttpResponse(status, orjson.dumps(results), context.headers(partition), round(charge_ru, 2))


def _run_of_batch(
    context: RequestContext, key: bytes, operation: dict[str, Any], before: dict[str, Document | None]
) -> dict[str, Any]:
    """Run one operation; *before* keeps the item that it replaces."""
    kind, item_id = operation.get("operationType"), str(operation.get("id"))
    item = {} if kind in ("Read", "Delete") else operation.get("resourceBody")
    if kind not in BATCH_OPERATIONS:
        raise HttpError(400, f"operationType must be one of {', '.join(BATCH_OPERATIONS)}")
    if not isinstance(item, dict):
        raise HttpError(400, "an operation that writes needs a resourceBody")
    written_id = str(item.get("id")) if kind in ("Create", "Upsert") else item_id
    document = context.container.documents.get(written_id, key)
    if kind == "Read":
        if document is None:
            raise context.not_found()
        status, charge_ru = 200, context.account.read_ru(document.size, strong=context.strong)
    else:
        before.setdefault(written_id, document)
        if_match = str(operation.get("ifMatch") or "")
        status, document, charge_ru = _write(context, kind.lower(), key, item_id, item, if_match=if_match)
    result = {"statusCode": status, "requestCharge": charge_ru}
    if kind == "Delete":
        return result
    return result | {"eTag": document.etag, "resourceBody": orjson.Fragment(document.body)}


def _restore(context: RequestContext, key: bytes, before: dict[str, Document | None]) -> None:
    documents = context.container.documents
    for item_id, saved in before.items():
        if (present := documents.get(item_id, key)) is not None:
            documents.remove(present)
        if saved is not None:
            documents.put(saved)
