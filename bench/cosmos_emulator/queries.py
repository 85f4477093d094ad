"""Queries and feeds over the items of a container: which partitions are read, page by page, and what that costs.

A query over several partitions is answered with a plan, by which SDKs query each partition and merge the results.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bench.cosmos_emulator.documents import Document
from bench.cosmos_emulator.errors import CROSS_PARTITION_QUERY_NOT_SERVABLE, HttpError, bad_request
from bench.cosmos_emulator.http import Response, parse_object
from bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from bench.cosmos_emulator.partition_keys import HEADER, UNDEFINED, encode
from bench.cosmos_emulator.partitions import Partition
from bench.cosmos_emulator.sql_evaluator import ALWAYS, Parameters, conditions_by_id, evaluate, rank
from bench.cosmos_emulator.sql_parser import Count, OrderBy, Query, parse

DEFAULT_PAGE_ITEMS = 100
MAX_PAGE_BYTES = 4 * 1024 * 1024
# Where a caller leaves the size of a page to the server, besides the 4 MB that a response may have.
MAX_PAGE_ITEMS = 10_000
EVERYTHING = "SELECT * FROM c"
# SDKs put a condition in its place when they continue after a page, `true` before.
FILTER = "{documentdb-formattableorderbyquery-filter}"


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A query with what its request's headers say: where to look, where to continue, how much to return."""

    query: Query
    parameters: Parameters
    partitions: Sequence[Partition]
    key: bytes | None
    """The only partition key that is queried."""

    epk_range: tuple[str, str] | None
    """The range of effective partition keys that is queried, where it is narrower than a partition."""

    after: int
    """The serial of the document after which an unordered scan continues."""

    skip: int
    """How many results the pages before this one had."""

    size: int


@dataclass(slots=True)
class Page:
    """Results, and the documents that were loaded for them."""

    parts: list[bytes]
    loaded: list[Document]
    counted: int = 0
    continuation: str = ""


def query(context: RequestContext) -> Response:
    """Return one page of a query."""
    statement, parameters = parse_query(context.request.body)
    request = _page_request(context, statement, parameters)
    if request.key is None and RANGE_HEADER not in context.request.headers:
        if not context.request.flag(b"x-ms-documentdb-query-enablecrosspartition"):
            raise bad_request("Cross partition query is required but disabled; enable it, or name a partition key.")
        needs_merge = (
            statement.is_aggregate or statement.order or statement.top is not None or statement.limit is not None
        )
        if needs_merge and len(request.partitions) > 1:
            # Only SDKs can merge; some of them look for the plan in the error.
            details: dict[str, object] = {"additionalErrorInfo": orjson.dumps(plan(statement)).decode()}
            message = "The provided cross partition query can not be directly served by the gateway."
            raise HttpError(400, message, CROSS_PARTITION_QUERY_NOT_SERVABLE, details=details)
    return _respond(context, request, is_feed=False)


def query_plan(context: RequestContext) -> Response:
    """Return the plan of a query; that costs nothing here."""
    return Response(200, orjson.dumps(plan(parse_query(context.request.body)[0])))


def feed(context: RequestContext) -> Response:
    """Return one page of all items."""
    if context.request.headers.get(b"a-im"):
        raise bad_request("the change feed is not emulated")
    return _respond(context, _page_request(context, parse(EVERYTHING), {}), is_feed=True)


def parse_query(body: bytes) -> tuple[Query, dict[str, Any]]:
    """Parse a query and its parameters from a body."""
    fields = parse_object(body)
    text, parameters = fields.get("query"), fields.get("parameters") or []
    if not isinstance(text, str) or not isinstance(parameters, list):
        raise bad_request("a query's body has a query and perhaps a list of parameters")
    values = dict[str, Any]()
    for parameter in parameters:
        if not isinstance(parameter, dict) or not isinstance(parameter.get("name"), str):
            raise bad_request("each parameter has a name and a value")
        values[parameter["name"]] = parameter.get("value", UNDEFINED)
    return parse(text), values


def select(query: Query, parameters: Parameters, resources: Iterable[Any]) -> list[Any]:
    """Run a query over resources that are not items: databases, containers, offers."""
    kept = [one for one in resources if query.where is None or evaluate(query.where, one, parameters) is True]
    if query.is_aggregate:
        return [evaluate(query.select, len(kept), parameters)]
    kept = _window(query, _sorted(query.order, [(one, one) for one in kept]))
    results = [evaluate(query.select, one, parameters) for one in kept]
    return [result for result in results if result is not UNDEFINED]


def _page_request(context: RequestContext, query: Query, parameters: Parameters) -> PageRequest:
    headers = context.request.headers
    partitions: Sequence[Partition] = context.container.partitions.all
    key = None
    if headers.get(HEADER, b"[]") != b"[]":
        value = context.key_value()
        key, partitions = encode(value), (context.partition_of(value),)
    elif (range_id := headers.get(RANGE_HEADER)) is not None:
        partitions = (context.container.partitions.with_id(range_id.decode("latin-1")),)
    start, end = headers.get(b"x-ms-start-epk"), headers.get(b"x-ms-end-epk")
    epk_range = None
    if start is not None and end is not None:
        epk_range = start.decode("latin-1").upper(), end.decode("latin-1").upper()
    after, skip = _continuation(context)
    return PageRequest(query, parameters, partitions, key, epk_range, after, skip, _page_size(context))


def _continuation(context: RequestContext) -> tuple[int, int]:
    token = context.request.header(b"x-ms-continuation")
    if not token:
        return 0, 0
    after, _, skip = token.partition(":")
    if not (token.isascii() and after.isdecimal() and skip.isdecimal() and len(token) < 40):
        raise bad_request("x-ms-continuation is not one that this emulation returned")
    return int(after), int(skip)


def _page_size(context: RequestContext) -> int:
    header = context.request.header(b"x-ms-max-item-count")
    if not header:
        return DEFAULT_PAGE_ITEMS
    size = int(header) if header.lstrip("-").isdecimal() and len(header) < 10 else 0
    if size < 1 and size != -1:
        raise bad_request("x-ms-max-item-count must be a positive number, or -1")
    return MAX_PAGE_ITEMS if size == -1 else size


def _respond(context: RequestContext, request: PageRequest, *, is_feed: bool) -> Response:
    region, partitions = context.request.region, request.partitions
    for partition in partitions:
        partition.admit(context.now, region)
        context.check_session(partition)
    page = _page(context, request)
    charge_ru = 0.0
    for partition in partitions:
        sizes = [one.size for one in page.loaded if one.partition is partition]
        counted = page.counted // len(partitions)
        charges, strong = context.account.charges, context.strong
        cost = charges.feed(sizes, strong=strong) if is_feed else charges.query(sizes, counted, strong=strong)
        partition.charge_read(context.now, region, cost)
        charge_ru += cost
    headers = context.headers(partitions[0])
    if len(partitions) > 1:
        del headers["x-ms-documentdb-partitionkeyrangeid"]
        headers["x-ms-session-token"] = ",".join(partition.session_token for partition in partitions)
    headers["x-ms-item-count"] = str(len(page.parts))
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (
        context.container.rid.encode(), b",".join(page.parts), len(page.parts),
    )  # fmt: skip
    return Response(200, body, headers, round(charge_ru, 2))


def _matching(context: RequestContext, request: PageRequest) -> Iterator[tuple[Document, Any]]:
    """Yield the documents that a query selects in the order of their creation, parsed where that was needed."""
    container, query = context.container, request.query
    where = ALWAYS if query.where is None else query.where
    conditions = conditions_by_id(where, request.parameters)
    documents: Iterable[Document] = container.documents.after(request.after)
    if conditions is not None:
        documents = container.documents.with_ids(conditions, request.after)
    everywhere = len(request.partitions) == len(container.partitions.all)
    needs_item = not query.selects_items or bool(query.order)
    for document in documents:
        if not everywhere and document.partition is not request.partitions[0]:
            continue
        if request.key is not None and document.key != request.key:
            continue
        if container.default_ttl is not None and container.expiry(document) <= context.now:
            continue
        if request.epk_range is not None and not _lies_within(context, document, request.epk_range):
            continue
        condition = where if conditions is None else conditions[document.id]
        item = document.parsed() if needs_item or condition is not ALWAYS else None
        if condition is ALWAYS or evaluate(condition, item, request.parameters) is True:
            yield document, item


def _lies_within(context: RequestContext, document: Document, epk_range: tuple[str, str]) -> bool:
    definition = context.container.definition
    return epk_range[0] <= definition.effective(definition.of_item(document.parsed())) < epk_range[1]


def _page(context: RequestContext, request: PageRequest) -> Page:
    query, matching = request.query, _matching(context, request)
    page, room, last = Page([], []), MAX_PAGE_BYTES, request.after
    if query.is_aggregate:
        page.counted = len(list(matching))
        page.parts = [orjson.dumps(evaluate(query.select, page.counted, request.parameters))]
        return page
    is_buffered = bool(query.order) or query.limit is not None
    if is_buffered:  # all that matches must be known before the first result is
        found = _sorted(query.order, [(item, (document, item)) for document, item in matching])
        matching = iter(_window(query, found)[request.skip :])
    for document, item in matching:
        taken = request.skip + len(page.loaded)
        if query.top is not None and taken >= query.top:
            break
        part = _result(request, document, item)
        if len(page.loaded) >= request.size or (page.parts and len(part) > room):
            page.continuation = f"{0 if is_buffered else last}:{taken}"
            break
        page.loaded.append(document)
        if part:
            page.parts.append(part)
        room -= len(part) + 1
        last = document.serial
    return page


def _result(request: PageRequest, document: Document, item: object) -> bytes:
    """Return one result's bytes; empty where it is undefined, and so left out."""
    if request.query.selects_items:
        return document.body or b""
    value = evaluate(request.query.select, item, request.parameters)
    return b"" if value is UNDEFINED else orjson.dumps(value)


def _sorted(order: Sequence[OrderBy], pairs: list[tuple[Any, Any]]) -> list[Any]:
    for by in reversed(order):
        pairs.sort(key=lambda pair, by=by: _sort_key(evaluate(by.path, pair[0], {})), reverse=by.descending)  # type: ignore[misc]  # mypy sees no type for a default of a lambda
    return [kept for _, kept in pairs]


def _sort_key(value: object) -> tuple[int, Any]:
    return rank(value), value if isinstance(value, bool | int | float | str) else 0


def _window(query: Query, kept: list[Any]) -> list[Any]:
    end = None if query.limit is None else query.offset + query.limit
    return kept[query.offset : end][: query.top]


def plan(query: Query) -> dict[str, Any]:
    """Return the plan of a query, as SDKs read it (azure-cosmos: `_execution_context/query_execution_info.py`)."""
    return {
        "partitionedQueryExecutionInfoVersion": 2,
        "queryInfo": {
            "distinctType": "None",
            "top": query.top,
            "offset": None if query.limit is None else query.offset,
            "limit": query.limit,
            "orderBy": ["Descending" if by.descending else "Ascending" for by in query.order],
            "orderByExpressions": [by.text for by in query.order],
            "groupByExpressions": [],
            "groupByAliases": [],
            "aggregates": ["Count"] if isinstance(query.select, Count) else [],
            "groupByAliasToAggregateType": {},
            "rewrittenQuery": _rewritten(query),
            "hasSelectValue": query.is_value and not query.selects_items,
            "dCountInfo": None,
            "hasNonStreamingOrderBy": False,
        },
        "queryRanges": [{"min": "", "max": "FF", "isMinInclusive": True, "isMaxInclusive": False}],
        "hybridSearchQueryInfo": None,
    }


def _rewritten(query: Query) -> str:
    """Return the query that each partition is to run."""
    source = f"FROM {query.alias} WHERE ({query.where_text})"
    if query.is_aggregate:
        return f'SELECT VALUE [{{"item": COUNT(1)}}] {source}'
    top = "" if query.top is None else f"TOP {query.top} "
    window = "" if query.limit is None else f" OFFSET 0 LIMIT {query.offset + query.limit}"
    if not query.order:
        return f"SELECT {top}VALUE {query.select_text} {source}{window}"
    items = ", ".join(f'{{"item": {by.text}}}' for by in query.order)
    chosen = f"{query.alias}._rid, [{items}] AS orderByItems, {query.select_text} AS payload"
    sorting = ", ".join(f"{by.text} {'DESC' if by.descending else 'ASC'}" for by in query.order)
    return f"SELECT {top}{chosen} {source} AND ({FILTER}) ORDER BY {sorting}{window}"
