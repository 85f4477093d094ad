"""Queries and feeds over the items of a container: which partitions are read, page by page, and what that costs.

`SELECT *` and `SELECT VALUE COUNT(1)`, with conditions of `=` and `IN` that are joined by AND, over literals and
parameters; other text is refused with 400. A count over several partitions is answered with a plan, by which SDKs query
each partition and add up the results.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.documents import Document, Path
from hotplate.bench.cosmos_emulator.http import HttpError, HttpResponse, Substatus, bad_request, parse_object
from hotplate.bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from hotplate.bench.cosmos_emulator.partitions import HEADER, Partition, encode

CONTINUATION = re.compile(rb"(\d{1,18})")
PAGE_SIZE = re.compile(rb"-1|0*[1-9]\d{0,8}")
MAX_PAGE_BYTES = 4 * 1024 * 1024
# If a caller leaves the size of a page to the server, besides the 4 MB that a response may have.
MAX_PAGE_ITEMS = 10_000

STATEMENT = re.compile(
    r"\s*SELECT\s+(?:TOP\s+(?P<top>\d{1,9})\s+)?(?:\*|VALUE\s+(?P<value>\w+)|VALUE\s+(?P<count>COUNT\(1\))"
    r"|VALUE\s+(?P<item>\[\{\"item\":\s*COUNT\(1\)\}\]))\s+FROM\s+(?:\w+\s+)?(?P<alias>(?!WHERE\b)\w+)(?:\s+WHERE\s+(?P<where>.+?))?\s*",
    re.IGNORECASE | re.DOTALL,
)
VALUE = r"(?:'[^'\\]*'|\"[^\"\\]*\"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|@\w+|true|false|null)"
TERM = re.compile(
    rf"\s*(?P<alias>\w+)(?P<path>(?:\.\w+|\[['\"][^'\"]+['\"]\])+)\s*(?:=\s*(?P<one>{VALUE})|IN\s*\(\s*"
    rf"(?P<list>{VALUE}(?:\s*,\s*{VALUE})*)\s*\))\s*(?P<and>AND\b)?|\s*(?P<all>true)\s*(?P<and_all>AND\b)?",
    re.IGNORECASE,
)
SEGMENT = re.compile(r"\w[^.\]'\"]*")
LITERALS = {"true": True, "false": False, "null": None}
UNSUPPORTED = "the emulator supports only SELECT * and COUNT(1) with =, IN and AND"


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: a path whose value must be one of some."""

    path: Path
    values: tuple[Any, ...]

    def test(self, item: Any) -> bool:  # noqa: ANN401 -- any JSON value
        """Return whether an item fulfils it."""
        for segment in self.path:
            if not isinstance(item, dict) or segment not in item:
                return False
            item = item[segment]
        return any(item == value and isinstance(item, bool) == isinstance(value, bool) for value in self.values)


def parse_terms(text: str, alias: str, parameters: Mapping[str, Any]) -> tuple[Term, ...]:
    """Parse a condition, which may be in parentheses as a whole."""
    text = text.strip()
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    terms, place = list[Term](), 0
    while True:
        found = TERM.match(text, place)
        if found is None or (found["alias"] or alias).lower() != alias.lower():
            raise bad_request(f"{UNSUPPORTED}; not {text[place : place + 60]!r}")
        if not found["all"]:
            values = re.findall(VALUE, found["one"] or found["list"], re.IGNORECASE)
            path = tuple(SEGMENT.findall(found["path"]))
            terms.append(Term(path, tuple(_value(value, parameters) for value in values)))
        place = found.end()
        if not (found["and"] or found["and_all"]):
            break
    if place != len(text):
        raise bad_request(f"{UNSUPPORTED}; not {text[place : place + 60]!r}")
    return tuple(terms)


def _value(text: str, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- any JSON value
    if text.startswith("@"):
        if text not in parameters:
            raise bad_request(f"the query has no parameter {text[:40]}")
        return parameters[text]
    if text.lower() in LITERALS:
        return LITERALS[text.lower()]
    return text[1:-1] if text[0] in "'\"" else orjson.loads(text)


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query."""

    terms: tuple[Term, ...] = ()
    """All of them must be fulfilled."""

    where_text: str = "true"
    alias: str = "c"
    top: int | None = None
    counts: bool = False
    counts_of_plan: bool = False
    """The form of a count that the plan prescribes, whose result SDKs add up."""

    def test(self, item: Any) -> bool:  # noqa: ANN401 -- any JSON value
        """Return whether an item fulfils the condition."""
        return all(term.test(item) for term in self.terms)


def parse_query(body: bytes) -> Query:
    """Parse a query with its parameters from a body."""
    fields = parse_object(body)
    text, parameters = fields.get("query"), fields.get("parameters") or []
    if not isinstance(text, str) or not isinstance(parameters, list):
        raise bad_request("a query's body has a query and perhaps a list of parameters")
    if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in parameters):
        raise bad_request("each parameter has a name and a value")
    found = STATEMENT.fullmatch(text)
    if found is None or found["value"] not in (None, found["alias"]):
        raise bad_request(f"{UNSUPPORTED}; not {text[:80]!r}")
    where_text = found["where"] or "true"
    terms = parse_terms(where_text, found["alias"], {one["name"]: one.get("value") for one in parameters})
    counts = bool(found["count"] or found["item"])
    top = int(found["top"]) if found["top"] else None
    return Query(terms, where_text, found["alias"], top, counts, bool(found["item"]))


def select(query: Query, resources: Iterable[Any]) -> list[Any]:
    """Run a query over resources that are not items: databases, containers, offers."""
    kept = [one for one in resources if query.test(one)][: query.top]
    return [len(kept)] if query.counts else kept


def query(context: RequestContext) -> HttpResponse:
    """Return one page of a query."""
    statement = parse_query(context.request.body)
    partitions, key = _where(context)
    if key is None and RANGE_HEADER not in context.request.headers:
        if not context.request.flag(b"x-ms-documentdb-query-enablecrosspartition"):
            raise bad_request("Cross partition query is required but disabled; enable it, or name a partition key.")
        if len(partitions) > 1 and (statement.counts or statement.top is not None):
            # Only SDKs can merge; some of them look for the plan in the error.
            details: dict[str, object] = {"additionalErrorInfo": orjson.dumps(plan(statement)).decode()}
            message = "The provided cross partition query can not be directly served by the gateway."
            raise HttpError(400, message, Substatus.CROSS_PARTITION_QUERY_NOT_SERVABLE, details=details)
    return _respond(context, statement, partitions, key)


def query_plan(context: RequestContext) -> HttpResponse:
    """Return the plan of a query; that costs nothing here."""
    return HttpResponse(200, orjson.dumps(plan(parse_query(context.request.body))))


def feed(context: RequestContext) -> HttpResponse:
    """Return one page of all items."""
    if context.request.headers.get(b"a-im"):
        raise bad_request("the change feed is not emulated")
    return _respond(context, None, *_where(context))


def _where(context: RequestContext) -> tuple[Sequence[Partition], bytes | None]:
    """Return the partitions, and the only partition key, that a request reads."""
    if context.request.headers.get(HEADER, b"[]") != b"[]":
        value = context.key_value()
        return (context.partition_of(value),), encode(value)
    range_id, partitions = context.request.header(RANGE_HEADER), context.container.partitions
    return ((partitions.with_id(range_id),) if range_id else partitions.all), None


def _respond(
    context: RequestContext, statement: Query | None, partitions: Sequence[Partition], key: bytes | None
) -> HttpResponse:
    """Return one page of a query, or of all items without a *statement*."""
    for partition in partitions:
        partition.admit(context.now, context.request.region)
    page = Page(context, statement or Query(), partitions, key)
    results = page.read()
    charge_ru = 0.0
    charges, strong = context.account.charges, context.strong
    for partition in partitions:
        sizes, scanned = (
            [one.size for one in documents if one.partition is partition] for documents in (page.loaded, page.scanned)
        )
        counted = page.counted // len(partitions)
        cost = (
            charges.feed(sizes, strong=strong)
            if statement is None
            else charges.query(sizes, counted, scanned=scanned, strong=strong)
        )
        partition.charge_read(context.now, context.request.region, cost)
        charge_ru += cost
    headers = context.headers(partitions[0])
    if len(partitions) > 1:
        del headers["x-ms-documentdb-partitionkeyrangeid"]
        headers["x-ms-session-token"] = ",".join(partition.session_token for partition in partitions)
    headers["x-ms-item-count"] = str(len(results))
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (
        context.container.rid.encode(), b",".join(results), len(results),
    )  # fmt: skip
    return HttpResponse(200, body, headers, round(charge_ru, 2))


class Page:
    """What one page of a query reads; its size and where it begins are in the request's headers."""

    def __init__(
        self, context: RequestContext, query: Query, partitions: Sequence[Partition], key: bytes | None
    ) -> None:
        headers = context.request.headers
        continuation = CONTINUATION.fullmatch(headers.get(b"x-ms-continuation") or b"0")
        if continuation is None:
            raise bad_request("x-ms-continuation is not one that this emulation returned")
        size = PAGE_SIZE.fullmatch(headers.get(b"x-ms-max-item-count") or b"100")
        if size is None:
            raise bad_request("x-ms-max-item-count must be a positive number, or -1")
        self._context = context
        self._query = query
        self._partitions = partitions
        self._key = key
        self._after = int(continuation[1])
        self._size = MAX_PAGE_ITEMS if size[0] == b"-1" else int(size[0])
        self.loaded = list[Document]()
        self.scanned = list[Document]()  # loaded without being returned, because no index serves the condition
        self.counted = 0
        self.continuation = ""

    def read(self) -> list[bytes]:
        """Return the results."""
        query = self._query
        if query.counts:
            self.counted = sum(1 for _ in self._matching())
            return [b'[{"item":%d}]' % self.counted if query.counts_of_plan else b"%d" % self.counted]
        results, room, last = list[bytes](), MAX_PAGE_BYTES, self._after
        for document in self._matching():
            if query.top is not None and len(results) >= query.top:
                break
            body = document.body or b""
            if len(results) >= self._size or (results and len(body) > room):
                self.continuation = str(last)
                break
            self.loaded.append(document)
            results.append(body)
            room -= len(body) + 1
            last = document.serial
        return results

    def _matching(self) -> Iterator[Document]:
        terms, container = self._query.terms, self._context.container
        ids = next((term.values for term in terms if term.path == ("id",)), None)
        documents = container.documents
        found = documents.after(self._after) if ids is None else documents.with_ids(map(str, ids), self._after)
        # A model: the index of one path is enough to narrow down what an AND selects.
        scans = bool(terms) and ids is None and not any(container.policy.serves(term.path) for term in terms)
        for document in self._readable(found):
            is_match = not terms or self._query.test(document.parsed())
            if scans and (self._query.counts or not is_match):
                self.scanned.append(document)
            if is_match:
                yield document

    def _readable(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield those of *documents* that are in the partitions, the key and the part of the range that are read."""
        headers, container = self._context.request.headers, self._context.container
        everywhere = len(self._partitions) == len(container.partitions.all)
        start, end = (headers.get(name, b"").decode().upper() for name in (b"x-ms-start-epk", b"x-ms-end-epk"))
        for document in documents:
            if not everywhere and document.partition is not self._partitions[0]:
                continue
            if self._key is not None and document.key != self._key:
                continue
            if not end or start <= container.effective_key_of(document) < end:
                yield document


def plan(query: Query) -> dict[str, Any]:
    """Return the plan of a query, as SDKs read it (azure-cosmos: `_execution_context/query_execution_info.py`)."""
    counting = f'SELECT VALUE [{{"item": COUNT(1)}}] FROM {query.alias} WHERE ({query.where_text})'  # noqa: S608 -- no SQL
    return {
        "partitionedQueryExecutionInfoVersion": 2,
        "queryInfo": {
            "distinctType": "None",
            "top": query.top,
            "offset": None,
            "limit": None,
            "orderBy": [],
            "orderByExpressions": [],
            "groupByExpressions": [],
            "groupByAliases": [],
            "aggregates": ["Count"] if query.counts else [],
            "groupByAliasToAggregateType": {},
            "rewrittenQuery": counting if query.counts else "",
            "hasSelectValue": query.counts,
            "dCountInfo": None,
            "hasNonStreamingOrderBy": False,
        },
        "queryRanges": [{"min": "", "max": "FF", "isMinInclusive": True, "isMaxInclusive": False}],
        "hybridSearchQueryInfo": None,
    }
