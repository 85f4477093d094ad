"""Queries and feeds over the items of a container: which partitions are visited, page by page, and what that costs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bench.cosmos_emulator.account import expiry
from bench.cosmos_emulator.documents import Document
from bench.cosmos_emulator.errors import QUERY_NEEDS_PLAN, Refused, bad
from bench.cosmos_emulator.hashing import UNDEFINED
from bench.cosmos_emulator.items import object_of, partition_of
from bench.cosmos_emulator.messages import Answer
from bench.cosmos_emulator.partition_keys import HEADER, key_of
from bench.cosmos_emulator.partitions import Partition
from bench.cosmos_emulator.plans import plan
from bench.cosmos_emulator.sql.conditions import ALWAYS, Parameters, by_id, evaluate, rank
from bench.cosmos_emulator.sql.nodes import Order, Statement
from bench.cosmos_emulator.sql.parser import parse
from bench.cosmos_emulator.turn import Turn

PAGE_ITEMS = 100
PAGE_BYTES = 4 * 1024 * 1024
MOST_ITEMS = 10_000
"""Where a caller leaves the size of a page to the server, besides the 4 MB that an answer may have."""

EVERYTHING = "SELECT * FROM c"


@dataclass(frozen=True, slots=True)
class Asked:
    """A query with what its request says about it."""

    statement: Statement
    parameters: Parameters
    partitions: Sequence[Partition]
    key: bytes | None
    """The only partition key that is asked for."""

    within: tuple[str, str] | None
    """The range of effective partition keys that is asked for, where it is narrower than a partition."""

    serial: int
    """Where an unordered scan goes on: after this document."""

    taken: int
    """How many results the pages before this one had."""

    page: int


@dataclass(slots=True)
class Page:
    """Results, and the documents that were loaded for them."""

    parts: list[bytes]
    loaded: list[Document]
    counted: int = 0
    continuation: str = ""


def query(turn: Turn) -> Answer:
    """Answer one page of a query."""
    statement, parameters = told(turn.request.body)
    key, partitions = _visited(turn)
    if key is None and turn.request.headers.get(b"x-ms-documentdb-partitionkeyrangeid") is None:
        if not turn.request.says(b"x-ms-documentdb-query-enablecrosspartition"):
            raise bad("Cross partition query is required but disabled; enable it, or name a partition key.")
        needs_plan = statement.counts or statement.order or statement.top is not None or statement.limit is not None
        if needs_plan and len(partitions) > 1:
            raise _needs_plan(statement)
    asked = Asked(statement, parameters, partitions, key, _within(turn), *_continued(turn), _page_size(turn))
    return _answer(turn, asked, is_feed=False)


def plan_only(turn: Turn) -> Answer:
    """Answer with the plan of a query; that costs nothing here."""
    statement, _ = told(turn.request.body)
    return Answer(200, orjson.dumps(plan(statement)))


def feed(turn: Turn) -> Answer:
    """Answer one page of all items."""
    if turn.request.headers.get(b"a-im"):
        raise bad("the change feed is not emulated")
    key, partitions = _visited(turn)
    asked = Asked(parse(EVERYTHING), {}, partitions, key, _within(turn), *_continued(turn), _page_size(turn))
    return _answer(turn, asked, is_feed=True)


def told(body: bytes) -> tuple[Statement, dict[str, Any]]:
    """Read a query and its parameters from a body."""
    given = object_of(body)
    text, parameters = given.get("query"), given.get("parameters") or []
    if not isinstance(text, str) or not isinstance(parameters, list):
        raise bad("a query's body has a query and perhaps a list of parameters")
    named = dict[str, Any]()
    for parameter in parameters:
        if not isinstance(parameter, dict) or not isinstance(parameter.get("name"), str):
            raise bad("each parameter has a name and a value")
        named[parameter["name"]] = parameter.get("value", UNDEFINED)
    return parse(text), named


def selected(statement: Statement, parameters: Parameters, items: Iterable[Any]) -> list[Any]:
    """Run a query over resources that are not items: databases, containers, offers."""
    kept = [item for item in items if statement.where is None or evaluate(statement.where, item, parameters) is True]
    if statement.counts:
        return [evaluate(statement.select, len(kept), parameters)]
    kept = _sorted(statement.order, [(item, item) for item in kept])
    results = [evaluate(statement.select, item, parameters) for item in _window(statement, kept)]
    return [result for result in results if result is not UNDEFINED]


def _visited(turn: Turn) -> tuple[bytes | None, Sequence[Partition]]:
    """Return the partition key that is asked for, if it is one, and the partitions that hold the answer."""
    header = turn.request.headers.get(HEADER)
    if header is not None and header != b"[]":
        value = turn.container.definition.of_header(header)
        return key_of(value), (partition_of(turn, value),)
    range_id = turn.request.headers.get(b"x-ms-documentdb-partitionkeyrangeid")
    if range_id is not None:
        return None, (turn.container.partitions.named(range_id.decode("latin-1")),)
    return None, turn.container.partitions.all


def _within(turn: Turn) -> tuple[str, str] | None:
    start, end = turn.request.headers.get(b"x-ms-start-epk"), turn.request.headers.get(b"x-ms-end-epk")
    if start is None or end is None:
        return None
    return start.decode("latin-1").upper(), end.decode("latin-1").upper()


def _continued(turn: Turn) -> tuple[int, int]:
    token = turn.request.text(b"x-ms-continuation")
    if not token:
        return 0, 0
    serial, _, taken = token.partition(":")
    if not (serial.isascii() and serial.isdecimal() and taken.isascii() and taken.isdecimal() and len(token) < 40):
        raise bad("x-ms-continuation is not one that this emulation gave")
    return int(serial), int(taken)


def _page_size(turn: Turn) -> int:
    told = turn.request.text(b"x-ms-max-item-count")
    if not told:
        return PAGE_ITEMS
    size = int(told) if told.lstrip("-").isdecimal() and len(told) < 10 else 0
    if size < 1 and size != -1:
        raise bad("x-ms-max-item-count must be a positive number, or -1")
    return MOST_ITEMS if size == -1 else size


def _answer(turn: Turn, asked: Asked, *, is_feed: bool) -> Answer:
    for partition in asked.partitions:
        partition.admit(turn.now, turn.region)
        turn.check_session(partition)
    statement = asked.statement
    whole = bool(statement.counts or statement.order or statement.limit is not None or statement.offset)
    page = _ordered_page(turn, asked) if whole else _scanned_page(turn, asked)
    charge_ru = 0.0
    for partition in asked.partitions:
        sizes = [one.size for one in page.loaded if one.partition is partition]
        counted = page.counted // len(asked.partitions)
        charges = turn.account.charges
        cost = charges.feed(sizes, strong=turn.strong) if is_feed else charges.query(sizes, counted, strong=turn.strong)
        partition.charge_read(turn.now, turn.region, cost)
        charge_ru += cost
    headers = turn.headers(asked.partitions[0])
    if len(asked.partitions) > 1:
        del headers["x-ms-documentdb-partitionkeyrangeid"]
        headers["x-ms-session-token"] = ",".join(f"{one.id}:-1#{one.lsn}" for one in asked.partitions)
    headers["x-ms-item-count"] = str(len(page.parts))
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (
        turn.container.rid.encode(), b",".join(page.parts), len(page.parts),
    )  # fmt: skip
    return Answer(200, body, headers, round(charge_ru, 2))


def _matching(turn: Turn, asked: Asked) -> Iterator[tuple[Document, Any]]:
    """Yield the documents that fulfil a query in the order of their making, parsed where that was needed."""
    container, statement = turn.container, asked.statement
    where = ALWAYS if statement.where is None else statement.where
    named = by_id(where, asked.parameters)
    documents = container.documents.after(asked.serial)
    if named is not None:
        documents = iter(container.documents.in_order(named, asked.serial))
    everywhere = len(asked.partitions) == len(container.partitions.all)
    parse_each = not statement.is_whole or bool(statement.order)
    for document in documents:
        if not everywhere and document.partition is not asked.partitions[0]:
            continue
        if asked.key is not None and document.key != asked.key:
            continue
        if container.default_ttl is not None and expiry(container, document) <= turn.now:
            continue
        if asked.within is not None and not _lies_within(turn, document, asked.within):
            continue
        condition = where if named is None else named[document.id]
        item = document.parsed() if parse_each or condition is not ALWAYS else None
        if condition is ALWAYS or evaluate(condition, item, asked.parameters) is True:
            yield document, item


def _lies_within(turn: Turn, document: Document, within: tuple[str, str]) -> bool:
    definition = turn.container.definition
    return within[0] <= definition.effective(definition.of_item(document.parsed())) < within[1]


def _scanned_page(turn: Turn, asked: Asked) -> Page:
    page = Page([], [])
    size, room = asked.page, PAGE_BYTES
    if asked.statement.top is not None:
        size = min(size, asked.statement.top - asked.taken)
    last = asked.serial
    for document, item in _matching(turn, asked):
        if asked.statement.top is not None and asked.taken + len(page.loaded) >= asked.statement.top:
            break
        part = _part(asked, document, item)
        if len(page.loaded) >= size or (page.parts and len(part) > room):
            page.continuation = f"{last}:{asked.taken + len(page.loaded)}"
            break
        page.loaded.append(document)
        if part:
            page.parts.append(part)
        room -= len(part) + 1
        last = document.serial
    return page


def _ordered_page(turn: Turn, asked: Asked) -> Page:
    """Answer what needs all that matches before the first result is known."""
    statement = asked.statement
    found = list(_matching(turn, asked))
    if statement.counts:
        return Page([orjson.dumps(evaluate(statement.select, len(found), asked.parameters))], [], len(found))
    kept = _window(statement, _sorted(statement.order, [(item, (document, item)) for document, item in found]))
    page = Page([], [])
    room = PAGE_BYTES
    for document, item in kept[asked.taken :]:
        part = _part(asked, document, item)
        if len(page.loaded) >= asked.page or (page.parts and len(part) > room):
            page.continuation = f"0:{asked.taken + len(page.loaded)}"
            break
        page.loaded.append(document)
        if part:
            page.parts.append(part)
        room -= len(part) + 1
    return page


def _part(asked: Asked, document: Document, item: object) -> bytes:
    """Return one result's bytes; empty where it is undefined, and so left out."""
    if asked.statement.is_whole:
        return document.body or b""
    value = evaluate(asked.statement.select, item, asked.parameters)
    return b"" if value is UNDEFINED else orjson.dumps(value)


def _sorted(order: Sequence[Order], pairs: list[tuple[Any, Any]]) -> list[Any]:
    for by in reversed(order):
        pairs.sort(key=lambda pair, by=by: _sort_key(evaluate(by.path, pair[0], {})), reverse=by.descending)  # type: ignore[misc]  # mypy sees no type for a default of a lambda
    return [kept for _, kept in pairs]


def _sort_key(value: object) -> tuple[int, Any]:
    comparable = isinstance(value, bool | int | float | str)
    return rank(value), value if comparable else 0


def _window(statement: Statement, kept: list[Any]) -> list[Any]:
    until = None if statement.limit is None else statement.offset + statement.limit
    return kept[statement.offset : until][: statement.top]


def _needs_plan(statement: Statement) -> Refused:
    """Refuse what only SDKs can merge; some of them look for the plan in the refusal."""
    message = "The provided cross partition query can not be directly served by the gateway."
    details: dict[str, object] = {"additionalErrorInfo": orjson.dumps(plan(statement)).decode()}
    return Refused(400, message, QUERY_NEEDS_PLAN, details=details)
