"""What can be done with one item over the wire: each request is admitted, done, charged and answered."""

from collections.abc import Callable
from typing import Any

import orjson

from bench.cosmos_emulator import writing
from bench.cosmos_emulator.errors import RANGE_GONE, Refused, bad
from bench.cosmos_emulator.hashing import Component
from bench.cosmos_emulator.messages import Answer
from bench.cosmos_emulator.partition_keys import HEADER, key_of
from bench.cosmos_emulator.partitions import Partition
from bench.cosmos_emulator.patching import patched
from bench.cosmos_emulator.sql.conditions import holds
from bench.cosmos_emulator.turn import Turn
from bench.cosmos_emulator.writing import Written


def read(turn: Turn, name: str) -> Answer:
    """Read one item by its id and partition key; 304 where the caller has it already."""
    value = turn.container.definition.of_header(turn.request.headers.get(HEADER))
    document = turn.live(name, key_of(value))
    partition = document.partition if document is not None else partition_of(turn, value)
    partition.admit(turn.now, turn.region)
    turn.check_session(partition)
    if document is None:
        refusal = writing.not_found(turn)
        partition.charge_read(turn.now, turn.region, refusal.charge_ru)
        refusal.headers |= turn.headers(partition)
        raise refusal
    charge_ru = turn.account.charges.read(document.size, strong=turn.strong)
    partition.charge_read(turn.now, turn.region, charge_ru)
    known = turn.request.headers.get(b"if-none-match")
    if known is not None and known.decode("latin-1").strip('"') == document.etag.strip('"'):
        return Answer(304, b"", turn.headers(partition, document.etag), charge_ru)
    return Answer(200, document.body or b"", turn.headers(partition, document.etag), charge_ru)


def create(turn: Turn) -> Answer:
    """Make a new item."""
    item = object_of(turn.request.body)
    return _write(turn, lambda value: writing.create(turn, value, item))


def upsert(turn: Turn) -> Answer:
    """Make an item, or replace it."""
    item = object_of(turn.request.body)
    return _write(turn, lambda value: writing.upsert(turn, value, item, turn.request.text(b"if-match")))


def replace(turn: Turn, name: str) -> Answer:
    """Replace an item."""
    item = object_of(turn.request.body)
    return _write(turn, lambda value: writing.replace(turn, value, name, item, turn.request.text(b"if-match")))


def delete(turn: Turn, name: str) -> Answer:
    """Delete an item."""
    answer = _write(turn, lambda value: writing.delete(turn, value, name, turn.request.text(b"if-match")))
    answer.body = b""
    return answer


def patch(turn: Turn, name: str) -> Answer:
    """Change single properties of an item."""
    body = _patch_of(turn.request.body)
    return _write(turn, lambda value: patch_one(turn, value, name, body, turn.request.text(b"if-match")))


def patch_one(turn: Turn, value: Component, name: str, body: dict[str, Any], if_match: str) -> Written:
    """Apply the `operations` of *body* where its `condition` holds; 412 where it does not."""
    found = writing.existing(turn, name, key_of(value))
    writing.check_match(turn, found, if_match)
    item = found.parsed()
    condition = body.get("condition")
    if condition is not None and not holds(condition, item):
        charge_ru = turn.account.charges.refused_write(found.size)
        raise Refused(412, "The condition of the patch does not hold.", charge_ru=charge_ru)
    operations = body.get("operations")
    made = patched(item, operations)
    return writing.amend(turn, found, made, len(operations) if isinstance(operations, list) else 0)


def partition_of(turn: Turn, value: Component) -> Partition:
    """Return the partition of a key; 410 where the request names another, which must have split."""
    partition = turn.container.partitions.of(turn.container.definition.effective(value))
    asked = turn.request.headers.get(b"x-ms-documentdb-partitionkeyrangeid")
    if asked is not None and asked.decode("latin-1") != partition.id:
        raise Refused(410, "the partition key lies in another range; read the ranges again", RANGE_GONE)
    return partition


def charged(turn: Turn, partition: Partition, refusal: Refused) -> Refused:
    """Take what a refused request cost, and let its answer tell where it was."""
    partition.charge_read(turn.now, turn.region, refusal.charge_ru)
    refusal.headers |= turn.headers(partition)
    return refusal


def _write(turn: Turn, do: Callable[[Component], Written]) -> Answer:
    value = turn.container.definition.of_header(turn.request.headers.get(HEADER))
    partition = partition_of(turn, value)
    partition.admit(turn.now, turn.region)
    try:
        written = do(value)
    except Refused as refusal:
        raise charged(turn, partition, refusal) from None
    partition.charge_write(turn.now, written.charge_ru)
    minimal = b"return=minimal" in turn.request.headers.get(b"prefer", b"").lower()
    body = b"" if minimal else written.document.body or b""
    return Answer(written.status, body, turn.headers(partition, written.document.etag), written.charge_ru)


def _patch_of(body: bytes) -> dict[str, Any]:
    """Parse a patch: an object with operations and perhaps a condition, or, as the JavaScript SDK sends, a list."""
    if body.lstrip()[:1] == b"[":
        body = b'{"operations":' + body + b"}"
    return object_of(body)


def object_of(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the body is not JSON: {error.msg}") from None
    if not isinstance(told, dict):
        raise bad("the body must be a JSON object")
    return told
