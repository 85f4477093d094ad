"""Queries and feeds over the items of a container: which partitions are read, page by page, and what that costs.

`SELECT *` and `SELECT VALUE COUNT(1)`, with a condition of `=`, `IN`, AND, OR and parentheses over literals and
parameters. That is what the store's tests and the SDKs' own reads of many items need; other text is refused with 400.
A count over several partitions is answered with a plan, by which SDKs query each partition and add up the results.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from hotplate.bench.cosmos_emulator.documents import Document, IndexingPolicy, Path
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
TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
    r"|(?P<parameter>@\w+)|(?P<word>\w+)|(?P<sign>[=(),.\[\]]))"
)
LITERALS = {"true": True, "false": False, "null": None}
UNSUPPORTED = "the emulator supports only SELECT * and COUNT(1) with =, IN, AND and OR"
Test = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on items: a test, the paths it needs an index for, and the only ids that can fulfil it."""

    test: Test
    paths: tuple[Path, ...] = ()
    is_and: bool = False
    ids: frozenset[str] | None = None


EVERYTHING = Condition(lambda _: True)


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query."""

    where: Condition = EVERYTHING
    where_text: str = "true"
    alias: str = "c"
    top: int | None = None
    counts: bool = False
    counts_of_plan: bool = False
    """The form of a count that the plan prescribes, whose result SDKs add up."""


class ConditionParser:
    """Parses one condition by recursive descent."""

    def __init__(self, text: str, alias: str, parameters: Mapping[str, Any]) -> None:
        self._alias = alias
        self._parameters = parameters
        self._tokens = list[tuple[str, str]]()
        place, text = 0, text.rstrip()
        while place < len(text):
            found = TOKEN.match(text, place)
            if found is None:
                raise bad_request(f"{UNSUPPORTED}; not {text[place : place + 40]!r}")
            self._tokens.append((str(found.lastgroup), found[found.lastgroup or 0]))
            place = found.end()
        self._tokens.append(("end", ""))
        self._place = 0

    def parse(self) -> Condition:
        """Parse the whole text."""
        condition = self._or()
        if self._tokens[self._place][0] != "end":
            raise self._unsupported()
        return condition

    def _or(self) -> Condition:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        if len(parts) == 1:
            return parts[0]
        listed = [part.ids for part in parts]
        ids = None if None in listed else frozenset[str]().union(*(each for each in listed if each is not None))
        tests = [part.test for part in parts]
        return Condition(
            lambda item: any(test(item) for test in tests),
            tuple(path for part in parts for path in part.paths),
            ids=ids,
        )

    def _and(self) -> Condition:
        parts = [self._single()]
        while self._accept("and"):
            parts.append(self._single())
        if len(parts) == 1:
            return parts[0]
        tests, ids = [part.test for part in parts], next((part.ids for part in parts if part.ids is not None), None)
        paths = tuple(path for part in parts for path in part.paths)
        return Condition(lambda item: all(test(item) for test in tests), paths, is_and=True, ids=ids)

    def _single(self) -> Condition:
        if self._accept("("):
            inner = self._or()
            self._expect(")")
            return inner
        kind, text = self._tokens[self._place]
        if kind == "word" and text.lower() in LITERALS:
            self._place += 1
            is_true = LITERALS[text.lower()] is True
            return Condition(lambda _: is_true)
        path = self._path()
        if self._accept("="):
            values = [self._value()]
        elif self._accept("in"):
            self._expect("(")
            values = [self._value()]
            while self._accept(","):
                values.append(self._value())
            self._expect(")")
        else:
            raise self._unsupported()
        wanted = {(type(value) in (int, float), value) for value in values if not isinstance(value, list | dict)}
        ids = frozenset(value for value in values if isinstance(value, str)) if path == ("id",) else None

        def test(item: Any) -> bool:  # noqa: ANN401 -- any JSON value
            for segment in path:
                if not isinstance(item, dict) or segment not in item:
                    return False
                item = item[segment]
            return not isinstance(item, list | dict) and (type(item) in (int, float), item) in wanted

        return Condition(test, (path,), ids=ids)

    def _path(self) -> Path:
        if not self._accept(self._alias):
            raise self._unsupported()
        segments = list[str]()
        while True:
            if self._accept("."):
                segments.append(self._next("word"))
            elif self._accept("["):
                segments.append(orjson.loads('"' + self._next("text")[1:-1].replace('"', '\\"') + '"'))
                self._expect("]")
            else:
                break
        if not segments:
            raise self._unsupported()
        return tuple(segments)

    def _value(self) -> Any:  # noqa: ANN401 -- any JSON value
        kind, text = self._tokens[self._place]
        self._place += 1
        match kind:
            case "text":
                return orjson.loads('"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"')
            case "number":
                return orjson.loads(text)
            case "parameter" if text in self._parameters:
                return self._parameters[text]
            case "word" if text.lower() in LITERALS:
                return LITERALS[text.lower()]
        self._place -= 1
        raise self._unsupported()

    def _accept(self, text: str) -> bool:
        kind, found = self._tokens[self._place]
        is_match = kind in ("word", "sign") and found.lower() == text.lower()
        self._place += is_match
        return is_match

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._unsupported()

    def _next(self, kind: str) -> str:
        found, text = self._tokens[self._place]
        if found != kind:
            raise self._unsupported()
        self._place += 1
        return text

    def _unsupported(self) -> HttpError:
        found = " ".join(text for _, text in self._tokens[self._place : self._place + 4])
        return bad_request(f"{UNSUPPORTED}; not {found[:40]!r}")


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
    where = ConditionParser(where_text, found["alias"], {one["name"]: one.get("value") for one in parameters}).parse()
    counts = bool(found["count"] or found["item"])
    top = int(found["top"]) if found["top"] else None
    return Query(where, where_text, found["alias"], top, counts, bool(found["item"]))


def select(query: Query, resources: Iterable[Any]) -> list[Any]:
    """Run a query over resources that are not items: databases, containers, offers."""
    kept = [one for one in resources if query.where.test(one)][: query.top]
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
        where, container = self._query.where, self._context.container
        ids = where.ids
        documents = (
            container.documents.after(self._after) if ids is None else container.documents.with_ids(ids, self._after)
        )
        scans = ids is None and not is_served(where, container.policy)
        for document in self._readable(documents):
            is_match = where is EVERYTHING or where.test(document.parsed())
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


def is_served(condition: Condition, policy: IndexingPolicy) -> bool:
    """Return whether the index narrows down which items a condition selects; without it, all must be loaded.

    A model: of an AND one part is enough, of all else every path must be indexed.
    """
    served = [policy.serves(path) for path in condition.paths]
    return not served or (any(served) if condition.is_and else all(served))


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
