"""Queries and feeds over the items of a container: which partitions are read, page by page, and what that costs.

A query over several partitions is answered with a plan, by which SDKs query each partition and merge the results.

The change feed has each item that was written since once, in the order of its last write, and not what was deleted:
https://learn.microsoft.com/azure/cosmos-db/nosql/change-feed-modes. A caller goes on from the etag of the response
before, which is the number of the last write that it has seen. Assumed, as nothing is documented: a poll that finds
nothing costs what a read does that finds nothing.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from heapq import nsmallest
from operator import attrgetter
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.documents import Document, IndexingPolicy
from hotplate.bench.cosmos_emulator.http import HttpError, HttpResponse, Substatus, bad_request, parse_object
from hotplate.bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from hotplate.bench.cosmos_emulator.partitions import HEADER, UNDEFINED, Partition, encode
from hotplate.bench.cosmos_emulator.sql import ALWAYS, Node, Parameters, Query, conditions_by_id, evaluate, parse, rank

ETAG = re.compile(r'"?(\d{1,18})"?')
INCREMENTAL = ("incremental feed", "incremental")
CONTINUATION = re.compile(rb"(\d{1,18}):(\d{1,18})")
PAGE_SIZE = re.compile(rb"-1|0*[1-9]\d{0,8}")
MAX_PAGE_BYTES = 4 * 1024 * 1024
# If a caller leaves the size of a page to the server, besides the 4 MB that a response may have.
MAX_PAGE_ITEMS = 10_000
EVERYTHING = "SELECT * FROM c"
# SDKs put a condition in its place when they continue after a page, `true` before.
FILTER = "{documentdb-formattableorderbyquery-filter}"


@dataclass(slots=True)
class Page:
    """What one page of a query reads, by its request's headers, and then its results; lives as long as the request."""

    context: RequestContext
    query: Query
    parameters: Parameters
    partitions: Sequence[Partition]
    key: bytes | None
    """The only partition key that is queried."""

    after: int
    """The serial of the document after which an unordered scan continues."""

    skip: int
    """How many results the pages before this one had."""

    size: int
    results: list[bytes] = field(default_factory=list)
    loaded: list[Document] = field(default_factory=list)
    """The documents that were read for the results."""

    considered: int = 0
    """Documents that were held against the condition."""

    scanned: list[Document] = field(default_factory=list)
    """The documents that were loaded without being returned, because no index serves the condition."""

    counted: int = 0
    continuation: str = ""


def query(context: RequestContext) -> HttpResponse:
    """Return one page of a query."""
    statement, parameters = parse_query(context.request.body)
    page = _page_of(context, statement, parameters)
    if page.key is None and RANGE_HEADER not in context.request.headers:
        if not context.request.flag(b"x-ms-documentdb-query-enablecrosspartition"):
            raise bad_request("Cross partition query is required but disabled; enable it, or name a partition key.")
        has_window = statement.top is not None or statement.limit is not None
        if len(page.partitions) > 1 and (statement.is_aggregate or statement.order or has_window):
            # Only SDKs can merge; some of them look for the plan in the error.
            details: dict[str, object] = {"additionalErrorInfo": orjson.dumps(plan(statement)).decode()}
            message = "The provided cross partition query can not be directly served by the gateway."
            raise HttpError(400, message, Substatus.CROSS_PARTITION_QUERY_NOT_SERVABLE, details=details)
    return _respond(page, is_feed=False)


def query_plan(context: RequestContext) -> HttpResponse:
    """Return the plan of a query; that costs nothing here."""
    return HttpResponse(200, orjson.dumps(plan(parse_query(context.request.body)[0])))


def feed(context: RequestContext) -> HttpResponse:
    """Return one page of all items, or of the change feed."""
    if context.request.headers.get(b"a-im"):
        return _changes(context)
    return _respond(_page_of(context, parse(EVERYTHING), {}), is_feed=True)


def parse_query(body: bytes) -> tuple[Query, dict[str, Any]]:
    """Parse a query and its parameters from a body."""
    fields = parse_object(body)
    text, parameters = fields.get("query"), fields.get("parameters") or []
    if not isinstance(text, str) or not isinstance(parameters, list):
        raise bad_request("a query's body has a query and perhaps a list of parameters")
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in parameters):
        raise bad_request("each parameter has a name and a value")
    return parse(text), {one["name"]: one.get("value", UNDEFINED) for one in parameters}


def select(query: Query, parameters: Parameters, resources: Iterable[Any]) -> list[Any]:
    """Run a query over resources that are not items: databases, containers, offers."""
    kept = [one for one in resources if evaluate(query.where, one, parameters) is True]
    if query.is_aggregate:
        return [evaluate(query.select, len(kept), parameters)]
    kept = _window(query, [(one, one) for one in kept])
    results = [evaluate(query.select, one, parameters) for one in kept]
    return [result for result in results if result is not UNDEFINED]


def _page_of(context: RequestContext, query: Query, parameters: Parameters) -> Page:
    partitions, key = _where(context)
    continuation = CONTINUATION.fullmatch(context.request.headers.get(b"x-ms-continuation") or b"0:0")
    if continuation is None:
        raise bad_request("x-ms-continuation is not one that this emulation returned")
    after, skip = int(continuation[1]), int(continuation[2])
    return Page(context, query, parameters, partitions, key, after, skip, _page_size(context))


def _where(context: RequestContext) -> tuple[Sequence[Partition], bytes | None]:
    """Return the partitions, and the only partition key, that a request reads."""
    if context.request.headers.get(HEADER, b"[]") != b"[]":
        value = context.key_value()
        return (context.partition_of(value),), encode(value)
    range_id, partitions = context.request.header(RANGE_HEADER), context.container.partitions
    return ((partitions.with_id(range_id),) if range_id else partitions.all), None


def _page_size(context: RequestContext) -> int:
    """Return how many items a page has at most."""
    size = PAGE_SIZE.fullmatch(context.request.headers.get(b"x-ms-max-item-count") or b"100")
    if size is None:
        raise bad_request("x-ms-max-item-count must be a positive number, or -1")
    return MAX_PAGE_ITEMS if size[0] == b"-1" else int(size[0])


def _readable(
    context: RequestContext, documents: Iterable[Document], partitions: Sequence[Partition], key: bytes | None
) -> Iterator[Document]:
    """Yield those of *documents* that live if a request reads: in its partitions, key, and part of the range."""
    headers, container = context.request.headers, context.container
    everywhere = len(partitions) == len(container.partitions.all)
    has_epk_range = b"x-ms-start-epk" in headers and b"x-ms-end-epk" in headers
    start, end = (context.request.header(name).upper() for name in (b"x-ms-start-epk", b"x-ms-end-epk"))
    for document in documents:
        if not everywhere and document.partition is not partitions[0]:
            continue
        if key is not None and document.key != key:
            continue
        if container.default_ttl is not None and container.expiry(document) <= context.now:
            continue
        if not has_epk_range or start <= container.effective_key_of(document) < end:
            yield document


def _changes(context: RequestContext) -> HttpResponse:
    """Return one page of changes; 304 without any; always with the etag to go on from."""
    if context.request.header(b"a-im").lower() not in INCREMENTAL:
        raise bad_request("only the latest versions of items are emulated, not all versions and deletes")
    partitions, key = _where(context)
    if len(partitions) > 1:
        raise bad_request("the change feed of several partitions is read one by one; name a partition key range")
    partition = partitions[0]
    partition.admit(context.now, context.request.region)
    since, from_s = _since(context, partition), _from_s(context.request.header(b"if-modified-since"))
    written = (one for one in context.container.documents.after() if one.lsn > since and one.ts >= from_s)
    changed = _readable(context, written, partitions, key)
    page = nsmallest(_page_size(context), changed, key=attrgetter("lsn"))
    charges, strong = context.account.charges, context.strong
    charge_ru = charges.feed([one.size for one in page], strong=strong) if page else charges.not_found(strong=strong)
    partition.charge_read(context.now, context.request.region, charge_ru)
    seen = page[-1].lsn if page else max(since, partition.lsn)
    headers = context.headers(partition, f'"{seen}"') | {"x-ms-item-count": str(len(page))}
    items = [b'%b,"_lsn":%d}' % ((one.body or b"{}")[:-1], one.lsn) for one in page]
    return HttpResponse(200 if page else 304, _body(context, items) if page else b"", headers, charge_ru)


def _since(context: RequestContext, partition: Partition) -> int:
    """Return the number of the last write that the caller has seen."""
    known = context.request.header(b"if-none-match")
    if not known:
        return 0
    if known == "*":
        return partition.lsn
    etag = ETAG.fullmatch(known)
    if etag is None:
        raise bad_request("If-None-Match is not an etag of the change feed that this emulation returned")
    return int(etag[1])


def _from_s(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        raise bad_request("If-Modified-Since is not a date of HTTP") from None


def _body(context: RequestContext, items: Sequence[bytes]) -> bytes:
    rid, count = context.container.rid.encode(), len(items)
    return b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (rid, b",".join(items), count)


def _respond(page: Page, *, is_feed: bool) -> HttpResponse:
    context, partitions, charges = page.context, page.partitions, page.context.account.charges
    for partition in partitions:
        partition.admit(context.now, context.request.region)
        context.check_session(partition)
    _read(page)
    charge_ru = 0.0
    for partition in partitions:
        sizes, scanned = (
            [one.size for one in documents if one.partition is partition] for documents in (page.loaded, page.scanned)
        )
        counted, strong = page.counted // len(partitions), context.strong
        cost = (
            charges.feed(sizes, strong=strong)
            if is_feed
            else charges.query(sizes, counted, scanned=scanned, strong=strong)
        )
        partition.charge_read(context.now, context.request.region, cost)
        charge_ru += cost
    headers = context.headers(partitions[0])
    if len(partitions) > 1:
        del headers["x-ms-documentdb-partitionkeyrangeid"]
        headers["x-ms-session-token"] = ",".join(partition.session_token for partition in partitions)
    headers["x-ms-item-count"] = str(len(page.results))
    if context.request.flag(b"x-ms-documentdb-populatequerymetrics"):
        headers["x-ms-documentdb-query-metrics"] = _metrics(page)
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    return HttpResponse(200, _body(context, page.results), headers, round(charge_ru, 2))


def _metrics(page: Page) -> str:
    """Return counts as the service's header has them; its times are left at 0, because ours are not Azure's."""
    retrieved, found = max(page.considered, len(page.loaded)), len(page.results)
    times = ("totalExecutionTime", "queryCompileTime", "queryLogicalPlanBuildTime", "queryPhysicalPlanBuildTime",
             "queryOptimizationTime", "indexLookupTime", "documentLoadTime", "systemFunctionExecuteTime",
             "userFunctionExecuteTime", "documentWriteTime", "VMExecutionTime")  # fmt: skip
    values = {f"{name}InMs": "0.00" for name in times} | {
        "retrievedDocumentCount": str(retrieved),
        "retrievedDocumentSize": str(sum(one.size for one in page.loaded)),
        "outputDocumentCount": str(found),
        "outputDocumentSize": str(sum(map(len, page.results))),
        "writeOutputTimeInMs": "0.00",
        "indexUtilizationRatio": f"{min(1.0, found / retrieved) if retrieved else 0:.2f}",
    }
    return ";".join(f"{name}={value}" for name, value in values.items())


def _matching(page: Page) -> Iterator[tuple[Document, Any]]:
    """Yield the documents that a query selects in the order of their creation, parsed if that was needed."""
    context, query, container = page.context, page.query, page.context.container
    conditions = conditions_by_id(query.where, page.parameters)
    documents: Iterable[Document] = container.documents.after(page.after)
    if conditions is not None:
        documents = container.documents.with_ids(conditions, page.after)
    scans = conditions is None and not is_served(query.where, container.policy)
    needs_item = not query.selects_items or bool(query.order)
    for document in _readable(context, documents, page.partitions, page.key):
        page.considered += 1
        condition = query.where if conditions is None else conditions[document.id]
        item = document.parsed() if needs_item or condition is not ALWAYS else None
        is_match = condition is ALWAYS or evaluate(condition, item, page.parameters) is True
        if scans and (query.is_aggregate or not is_match):
            page.scanned.append(document)
        if is_match:
            yield document, item


def is_served(condition: Node, policy: IndexingPolicy) -> bool:
    """Return whether the index narrows down which items a condition selects; without it, all must be loaded.

    A model: of an AND one part is enough, of all else every path must be indexed.
    """
    parts = condition.parts
    if condition.kind == "path":
        return policy.serves(tuple("[]" if isinstance(segment, int) else segment for segment in condition.value))
    if condition.kind == "and":
        parts = tuple(part for part in parts if part.kind != "constant")
        return not parts or any(is_served(part, policy) for part in parts)
    return all(is_served(part, policy) for part in parts)


def _read(page: Page) -> None:
    """Add the results of a page."""
    query, matching, room, last = page.query, _matching(page), MAX_PAGE_BYTES, page.after
    if query.is_aggregate:
        page.counted = sum(1 for _ in matching)
        page.results.append(orjson.dumps(evaluate(query.select, page.counted, page.parameters)))
        return
    is_buffered = bool(query.order) or query.limit is not None
    if is_buffered:  # all that matches must be known before the first result is
        matching = iter(_window(query, [(item, (document, item)) for document, item in matching])[page.skip :])
    for document, item in matching:
        taken = page.skip + len(page.loaded)
        if query.top is not None and taken >= query.top:
            break
        result = document.body or b""
        if not query.selects_items:  # a result that is undefined is left out
            value = evaluate(query.select, item, page.parameters)
            result = b"" if value is UNDEFINED else orjson.dumps(value)
        if len(page.loaded) >= page.size or (page.results and len(result) > room):
            page.continuation = f"{0 if is_buffered else last}:{taken}"
            break
        page.loaded.append(document)
        if result:
            page.results.append(result)
        room -= len(result) + 1
        last = document.serial


def _window(query: Query, pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Sort pairs of an item and what stands for it, and return the latter where OFFSET, LIMIT and TOP leave them."""
    for by in reversed(query.order):
        pairs.sort(key=lambda pair, path=by.path: _sort_key(pair[0], path), reverse=by.descending)  # type: ignore[misc]  # mypy sees no type for a default of a lambda
    end = None if query.limit is None else query.offset + query.limit
    return [kept for _, kept in pairs[query.offset : end][: query.top]]


def _sort_key(item: object, path: Node) -> tuple[int, Any]:
    value = evaluate(path, item, {})
    return rank(value), value if isinstance(value, bool | int | float | str) else 0


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
            "aggregates": ["Count"] if query.select.kind == "count" else [],
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
