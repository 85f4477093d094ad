"""Transactional batches: operations on one partition key that all take effect, or none.

https://learn.microsoft.com/azure/cosmos-db/nosql/transactional-batch: at most 100 operations and 2 MB.
"""

import copy
from typing import Any

import orjson

from bench.cosmos_emulator import items
from bench.cosmos_emulator.documents import Document
from bench.cosmos_emulator.errors import HttpError, bad_request
from bench.cosmos_emulator.http import Response, parse_json
from bench.cosmos_emulator.items import RequestContext
from bench.cosmos_emulator.partition_keys import KeyValue, encode

MAX_OPERATIONS = 100
FAILED_DEPENDENCY = {"statusCode": 424, "requestCharge": 0.0}
WRITES: dict[object, items.Write] = {
    "Create": items.create,
    "Upsert": items.upsert,
    "Replace": items.replace,
    "Patch": items.patch,
    "Delete": items.delete,
}


def batch(context: RequestContext) -> Response:
    """Run a batch: 200 with one result for each operation, or 207 with the one that failed and 424 for the others."""
    operations = _operations_of(context.request.body)
    value = context.key_value()
    partition = context.partition_of(value)
    partition.admit(context.now, context.request.region)
    results, rollback = list[dict[str, Any]](), list[Savepoint]()
    status, charge_ru = 200, 0.0
    for operation in operations:
        try:
            rollback.append(Savepoint(context, operation, value))
            result = _run(context, value, operation)
        except HttpError as error:
            status, charge_ru = 207, charge_ru + error.charge_ru
            for savepoint in reversed(rollback):
                savepoint.restore()
            failed = {"statusCode": error.status, "subStatusCode": error.substatus, "message": error.message}
            before, after = len(results), len(operations) - len(results) - 1
            failed["requestCharge"] = error.charge_ru
            results = [FAILED_DEPENDENCY] * before + [failed] + [FAILED_DEPENDENCY] * after
            break
        results.append(result)
        charge_ru += result["requestCharge"]
    charge_ru = round(charge_ru, 2)
    if status == 200:
        partition.charge_write(context.now, charge_ru)
    else:
        partition.charge_read(context.now, context.request.region, charge_ru)
    return Response(status, orjson.dumps(results), context.headers(partition), charge_ru)


class Savepoint:
    """The item that one operation may change, as it was before; lives as long as its batch."""

    def __init__(self, context: RequestContext, operation: dict[str, Any], value: KeyValue) -> None:
        resource, item_id = operation.get("resourceBody"), operation.get("id")
        if operation.get("operationType") in ("Create", "Upsert") and isinstance(resource, dict):
            item_id = resource.get("id")
        self._documents = context.container.documents
        self._id, self._key = str(item_id), encode(value)
        self._document = context.find(self._id, self._key)
        self._saved = copy.copy(self._document)

    def restore(self) -> None:
        """Put the item back."""
        present = self._documents.get(self._id, self._key)
        if present is not None and present is not self._document:
            self._documents.remove(present)
        if self._document is None or self._saved is None:
            return
        if present is self._document:
            self._documents.resize(present, self._saved.size)
            present.restore(self._saved)
        else:
            self._document.restore(self._saved)
            self._documents.undelete(self._document)


def _operations_of(body: bytes) -> list[dict[str, Any]]:
    operations = parse_json(body, "the batch")
    if not isinstance(operations, list) or not 1 <= len(operations) <= MAX_OPERATIONS:
        raise bad_request(f"a batch has 1 to {MAX_OPERATIONS} operations")
    if not all(isinstance(operation, dict) for operation in operations):
        raise bad_request("each operation of a batch is an object")
    return operations


def _run(context: RequestContext, value: KeyValue, operation: dict[str, Any]) -> dict[str, Any]:
    kind, item_id = operation.get("operationType"), str(operation.get("id"))
    if kind == "Read":
        found = context.existing(item_id, encode(value))
        return _result(200, found, context.account.charges.read(found.size, strong=context.strong))
    write = WRITES.get(kind) if isinstance(kind, str) else None
    if write is None:
        raise bad_request("operationType must be Create, Upsert, Replace, Patch, Delete or Read")
    resource = operation.get("resourceBody")
    if not isinstance(resource, dict) and kind != "Delete":
        raise bad_request("an operation that writes needs a resourceBody")
    written = write(context, value, item_id, resource or {}, str(operation.get("ifMatch") or ""))
    if kind == "Delete":
        return {"statusCode": 204, "requestCharge": written.charge_ru}
    return _result(written.status, written.document, written.charge_ru)


def _result(status: int, document: Document, charge_ru: float) -> dict[str, Any]:
    body = orjson.Fragment(document.body or b"null")
    return {"statusCode": status, "requestCharge": charge_ru, "eTag": document.etag, "resourceBody": body}
