"""Queries and feeds of items, with paging and charges.

Supports `SELECT *` and `SELECT VALUE COUNT(1)` with `=`, `IN`, AND, literals and parameters; others get 400. A count
over several partitions returns a plan: SDKs query each partition and add up results.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.http import HttpError, HttpResponse, Request, Substatus
from hotplate.bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from hotplate.bench.cosmos_emulator.partitions import HEADER, SERIAL, Document, Partition, encode, hash_of, key_of

NUMBER = re.compile(r"-1|\d{1,18}")
MAX_PAGE_BYTES = 4 * 1024 * 1024
# Items of a page, if the caller sets no size.
MAX_PAGE_ITEMS = 10_000

REWRITTEN = 'VALUE [{"item": COUNT(1)}]'
STATEMENT = re.compile(
    rf"\s*SELECT\s+(?:\*|VALUE\s+(?P<count>COUNT\(1\))|(?P<rewritten>{re.escape(REWRITTEN)}))"
    r"\s+FROM\s+(?P<source>(?:\w+\s+)?(?P<alias>(?!WHERE\b)\w+)(?:\s+WHERE\s+(?P<where>.+?))?)\s*",
    re.IGNORECASE | re.DOTALL,
)
VALUE = r"(?:'[^'\\]*'|\"[^\"\\]*\"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|@\w+|true|false|null)"
CONDITION = re.compile(
    rf"\s*(?P<alias>\w+)\.(?P<path>\w+(?:\.\w+)*)\s*"
    rf"(?:=\s*(?P<one>{VALUE})|IN\s*\(\s*(?P<list>{VALUE}(?:\s*,\s*{VALUE})*)\s*\))\s*(?P<and>AND\b)?",
    re.IGNORECASE,
)
UNSUPPORTED = "the emulator supports only SELECT * and COUNT(1) with =, IN and AND"


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition that a path has one of several values."""

    path: tuple[str, ...]
    values: tuple[Any, ...]

    def test(self, item: Any) -> bool:  # noqa: ANN401 -- any JSON value
        """Return whether an item meets the condition."""
        for segment in self.path:
            if not isinstance(item, dict) or segment not in item:
                return False
            item = item[segment]
        return any(item == value and isinstance(item, bool) == isinstance(value, bool) for value in self.values)


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query; its conditions are joined by AND."""

    conditions: tuple[Condition, ...] = ()
    counts: bool = False
    is_rewritten: bool = False
    source: str = ""  # the text after FROM

    def test(self, item: Any) -> bool:  # noqa: ANN401 -- any JSON value
        """Return whether an item meets all conditions."""
        return all(condition.test(item) for condition in self.conditions)


def parse_query(request: Request) -> Query:
    """Parse a request's query and parameters."""
    fields = request.object()
    text, parameters = fields.get("query"), fields.get("parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(each, dict) and "name" in each for each in parameters):
        raise HttpError(400, "the parameters of a query are a list of objects with a name and a value")
    found = STATEMENT.fullmatch(str(text))
    if found is None:
        raise HttpError(400, f"{UNSUPPORTED}; not {str(text)[:80]!r}")
    named = {str(each["name"]): each.get("value") for each in parameters}
    conditions = tuple(_conditions(found["where"], found["alias"], named)) if found["where"] else ()
    return Query(conditions, bool(found["count"] or found["rewritten"]), bool(found["rewritten"]), found["source"])


def _conditions(text: str, alias: str, parameters: Mapping[str, Any]) -> Iterator[Condition]:
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    place, more = 0, True
    while more:
        found = CONDITION.match(text, place)
        if found is None or found["alias"].lower() != alias.lower():
            raise HttpError(400, f"{UNSUPPORTED}; not {text[place : place + 60]!r}")
        values = re.findall(VALUE, found["one"] or found["list"], re.IGNORECASE)
        yield Condition(tuple(found["path"].split(".")), tuple(_value(value, parameters) for value in values))
        place, more = found.end(), bool(found["and"])
    if place != len(text):
        raise HttpError(400, f"{UNSUPPORTED}; not {text[place : place + 60]!r}")


def _value(text: str, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- any JSON value
    if text.startswith("@"):
        if text not in parameters:
            raise HttpError(400, f"the query has no parameter {text[:40]}")
        return parameters[text]
    return text[1:-1] if text[0] in "'\"" else orjson.loads(text.lower())


def query(context: RequestContext) -> HttpResponse:
    """Return one page of a query."""
    statement = parse_query(context.request)
    partitions, key = _where(context)
    if key is None and RANGE_HEADER not in context.request.headers:
        if not context.request.flag(b"x-ms-documentdb-query-enablecrosspartition"):
            raise HttpError(400, "Cross partition query is required but disabled; enable it, or name a partition key.")
        if len(partitions) > 1 and statement.counts:
            message = "The provided cross partition query can not be directly served by the gateway."
            # The Node SDK reads the plan from the error.
            details: dict[str, object] = {"additionalErrorInfo": orjson.dumps(_plan_of(statement)).decode()}
            raise HttpError(400, message, Substatus.CROSS_PARTITION_QUERY_NOT_SERVABLE, details=details)
    return _respond(context, statement, partitions, key)


def query_plan(context: RequestContext) -> HttpResponse:
    """Return a query's plan, without a charge."""
    return HttpResponse(200, orjson.dumps(_plan_of(parse_query(context.request))))


def feed(context: RequestContext) -> HttpResponse:
    """Return one page of all items."""
    if context.request.headers.get(b"a-im"):
        raise HttpError(400, "the change feed is not emulated")
    return _respond(context, None, *_where(context))


def _where(context: RequestContext) -> tuple[Sequence[Partition], bytes | None]:
    """Return the partitions to read, and the only key, if any."""
    if context.request.headers.get(HEADER, b"[]") != b"[]":
        key = key_of(context.request)
        return (context.partition_of(key),), key
    range_id, partitions = context.request.header(RANGE_HEADER), context.container.partitions
    return ((partitions.with_id(range_id),) if range_id else partitions.all), None


def _respond(
    context: RequestContext, statement: Query | None, partitions: Sequence[Partition], key: bytes | None
) -> HttpResponse:
    """Charge each partition for its part; without *statement*, return all items."""
    for partition in partitions:
        partition.admit(context.now, context.request.region)
    query = statement or Query()
    page = _read_page(context, query, _readable(context, query, partitions, key))
    charges, strong, charge_ru = context.account.charges, context.strong, 0.0
    for partition in partitions:
        loaded, scanned = (
            [one.size for one in documents if one.partition is partition] for documents in (page.loaded, page.scanned)
        )
        if statement is None:
            cost = charges.feed(loaded, strong=strong)
        else:
            cost = charges.query(loaded, page.counted // len(partitions), scanned=scanned, strong=strong)
        partition.charge(context.now, cost, context.request.region)
        charge_ru += cost
    results = [document.body for document in page.loaded]
    if query.counts:
        results = [b'[{"item":%d}]' % page.counted if query.is_rewritten else b"%d" % page.counted]
    headers = context.headers(partitions[0]) | {"x-ms-item-count": str(len(results))}
    if len(partitions) > 1:
        del headers["x-ms-documentdb-partitionkeyrangeid"]
        headers["x-ms-session-token"] = ",".join(partition.session_token for partition in partitions)
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (
        context.container.rid.encode(), b",".join(results), len(results),
    )  # fmt: skip
    return HttpResponse(200, body, headers, round(charge_ru, 2))


@dataclass(slots=True)
class Page:
    """Documents read for one page."""

    loaded: list[Document] = field(default_factory=list)
    scanned: list[Document] = field(default_factory=list)  # loaded without a match
    counted: int = 0
    continuation: str = ""


def _read_page(context: RequestContext, query: Query, documents: Iterable[Document]) -> Page:
    given, room = _number(context.request, "x-ms-max-item-count", 100), MAX_PAGE_BYTES
    size = given if given > 0 else MAX_PAGE_ITEMS
    scans = bool(query.conditions) and _ids_of(query) is None and not context.container.is_indexed
    page = Page()
    for document in documents:
        is_match = not query.conditions or query.test(document.parsed())
        if scans and (query.counts or not is_match):
            page.scanned.append(document)
        if is_match and query.counts:
            page.counted += 1
        elif is_match:
            if len(page.loaded) >= size or (page.loaded and len(document.body) > room):
                page.continuation = str(page.loaded[-1].serial)
                break
            page.loaded.append(document)
            room -= len(document.body) + 1
    return page


def _readable(
    context: RequestContext, query: Query, partitions: Sequence[Partition], key: bytes | None
) -> Iterator[Document]:
    headers, container = context.request.headers, context.container
    ids, after = _ids_of(query), _number(context.request, "x-ms-continuation", 0)
    if ids is None or container.key_property != "id":
        documents: Iterable[Document] = container.documents.after(after)
    else:
        found = filter(None, (container.documents.get(item_id, encode(item_id)) for item_id in ids))
        documents = sorted((one for one in found if one.serial > after), key=SERIAL)
    everywhere = len(partitions) == len(container.partitions.all)
    start, end = (headers.get(name, b"").decode("latin-1").upper() for name in (b"x-ms-start-epk", b"x-ms-end-epk"))
    for document in documents:
        is_read = everywhere or document.partition is partitions[0]
        if is_read and key in (None, document.key) and (not end or start <= hash_of(document.key) < end):
            yield document


def _number(request: Request, header: str, default: int) -> int:
    text = request.header(header.encode()) or str(default)
    if not NUMBER.fullmatch(text):
        raise HttpError(400, f"{header} must be -1 or a number, and not {text[:40]!r}")
    return int(text)


def _ids_of(query: Query) -> set[str] | None:
    return next((set(map(str, each.values)) for each in query.conditions if each.path == ("id",)), None)


def _plan_of(query: Query) -> dict[str, Any]:
    """See azure-cosmos: `_execution_context/query_execution_info.py`."""
    rewritten = f"SELECT {REWRITTEN} FROM {query.source}"  # noqa: S608 -- no SQL
    return {
        "partitionedQueryExecutionInfoVersion": 2,
        "queryInfo": {
            "distinctType": "None",
            "orderBy": [],
            "groupByExpressions": [],
            "aggregates": ["Count"] if query.counts else [],
            "rewrittenQuery": rewritten if query.counts else "",
            "hasSelectValue": query.counts,
        },
        "queryRanges": [{"min": "", "max": "FF", "isMinInclusive": True, "isMaxInclusive": False}],
    }
