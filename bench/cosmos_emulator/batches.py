"""Transactional batches: operations on one partition key that all happen, or none.

https://learn.microsoft.com/azure/cosmos-db/nosql/transactional-batch: at most 100 operations and 2 MB.
"""

from typing import Any

import orjson

from bench.cosmos_emulator import writing
from bench.cosmos_emulator.documents import Document
from bench.cosmos_emulator.errors import Refused, bad
from bench.cosmos_emulator.hashing import Component
from bench.cosmos_emulator.items import partition_of, patch_one
from bench.cosmos_emulator.messages import Answer
from bench.cosmos_emulator.partition_keys import HEADER, key_of
from bench.cosmos_emulator.turn import Turn
from bench.cosmos_emulator.writing import Written

MOST_OPERATIONS = 100
DEPENDENT = {"statusCode": 424, "requestCharge": 0.0}


def batch(turn: Turn) -> Answer:
    """Run a batch: 200 with one result for each operation, or 207 with the one that failed and 424 for the others."""
    operations = _operations(turn.request.body)
    value = turn.container.definition.of_header(turn.request.headers.get(HEADER))
    partition = partition_of(turn, value)
    partition.admit(turn.now, turn.region)
    results, undo = list[dict[str, Any]](), list[Saved]()
    status, charge_ru = 200, 0.0
    for operation in operations:
        try:
            undo.append(Saved(turn, operation, value))
            result = _run(turn, value, operation)
        except Refused as refusal:
            status, charge_ru = 207, charge_ru + refusal.charge_ru
            for saved in reversed(undo):
                saved.restore()
            failed = {"statusCode": refusal.status, "subStatusCode": refusal.substatus, "message": refusal.message}
            before, after = len(results), len(operations) - len(results) - 1
            results = [DEPENDENT] * before + [failed | {"requestCharge": refusal.charge_ru}] + [DEPENDENT] * after
            break
        results.append(result)
        charge_ru += result["requestCharge"]
    charge_ru = round(charge_ru, 2)
    if status == 200:
        partition.charge_write(turn.now, charge_ru)
    else:
        partition.charge_read(turn.now, turn.region, charge_ru)
    return Answer(status, orjson.dumps(results), turn.headers(partition), charge_ru)


class Saved:
    """What one operation may change, as it was before; lives as long as its batch."""

    def __init__(self, turn: Turn, operation: dict[str, Any], value: Component) -> None:
        resource = operation.get("resourceBody")
        is_born = operation.get("operationType") in ("Create", "Upsert") and isinstance(resource, dict)
        name = resource.get("id") if is_born and isinstance(resource, dict) else operation.get("id")
        self._documents = turn.container.documents
        self._name, self._key = str(name), key_of(value)
        self._document = turn.live(self._name, self._key)
        self._state = None if self._document is None else self._document.state()

    def restore(self) -> None:
        """Put it back."""
        now = self._documents.get(self._name, self._key)
        if self._document is None or self._state is None:
            if now is not None:
                self._documents.remove(now)
        elif now is self._document:
            self._documents.resize(now, self._state.size)
            now.put_back(self._state)
        else:
            if now is not None:
                self._documents.remove(now)
            self._document.put_back(self._state)
            self._documents.revive(self._document)


def _operations(body: bytes) -> list[dict[str, Any]]:
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the batch is not JSON: {error.msg}") from None
    if not isinstance(told, list) or not 1 <= len(told) <= MOST_OPERATIONS:
        raise bad(f"a batch has 1 to {MOST_OPERATIONS} operations")
    if not all(isinstance(operation, dict) for operation in told):
        raise bad("each operation of a batch is an object")
    return told


def _run(turn: Turn, value: Component, operation: dict[str, Any]) -> dict[str, Any]:
    kind, name = operation.get("operationType"), operation.get("id")
    if_match = str(operation.get("ifMatch") or "")
    if kind == "Read":
        return _read(turn, str(name), key_of(value))
    if kind == "Delete":
        written = writing.delete(turn, value, str(name), if_match)
        return {"statusCode": 204, "requestCharge": written.charge_ru}
    resource = operation.get("resourceBody")
    if not isinstance(resource, dict):
        raise bad("an operation that writes needs a resourceBody")
    if kind == "Create":
        return _result(writing.create(turn, value, resource))
    if kind == "Upsert":
        return _result(writing.upsert(turn, value, resource, if_match))
    if kind == "Replace":
        return _result(writing.replace(turn, value, str(name), resource, if_match))
    if kind == "Patch":
        return _result(patch_one(turn, value, str(name), resource, if_match))
    raise bad("operationType must be Create, Upsert, Replace, Patch, Delete or Read")


def _read(turn: Turn, name: str, key: bytes) -> dict[str, Any]:
    found = writing.existing(turn, name, key)
    charge_ru = turn.account.charges.read(found.size, strong=turn.strong)
    return _described(200, found, charge_ru)


def _result(written: Written) -> dict[str, Any]:
    return _described(written.status, written.document, written.charge_ru)


def _described(status: int, document: Document, charge_ru: float) -> dict[str, Any]:
    body = orjson.Fragment(document.body or b"null")
    return {"statusCode": status, "requestCharge": charge_ru, "eTag": document.etag, "resourceBody": body}
