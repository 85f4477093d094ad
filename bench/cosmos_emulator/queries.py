"""Queries and feeds of items, with paging and charges.

Supports `SELECT *` with properties equal to or IN parameters or texts, joined by AND; others get 400.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hotplate.bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from hotplate.bench.cosmos_emulator.messages import HttpError, HttpResponse, Request
from hotplate.bench.cosmos_emulator.partitions import HEADER, Document, Partition, hash_of, key_of

NUMBER = re.compile(r"-1|\d{1,18}")
MAX_PAGE_BYTES = 4 * 1024 * 1024
# By default.
MAX_PAGE_ITEMS = 10_000

STATEMENT = re.compile(
    r"\s*SELECT\s+\*\s+FROM\s+(?:\w+\s+)?(?P<alias>(?!WHERE\b)\w+)(?:\s+WHERE\s+(?P<where>.+?))?\s*",
    re.IGNORECASE | re.DOTALL,
)
AND = re.compile(r"\s+AND\s+", re.IGNORECASE)
# A parameter or, as the SDK for JavaScript sends for offers, a text.
VALUE = re.compile(r'@\w+|"[^"\\]*"')
CONDITION = re.compile(
    rf"(?P<alias>\w+)\.(?P<name>\w+)\s*"
    rf"(?:=\s*(?:{VALUE.pattern})|IN\s*\(\s*(?:{VALUE.pattern})(?:\s*,\s*(?:{VALUE.pattern}))*\s*\))",
    re.IGNORECASE,
)
UNSUPPORTED = 'the emulator supports only SELECT * with properties equal to or IN parameters or "texts", joined by AND'

# Accepted values by property.
Conditions = Mapping[str, list[Any]]


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a query, as `@id`, with its value."""

    name: str
    value: Any = None


class SqlQuery(msgspec.Struct, frozen=True):
    """The body of a query."""

    query: str
    parameters: list[Parameter] | None = None


def parse_query(request: Request) -> Conditions:
    """Parse the SQL of a query's body, such as `SELECT * FROM c WHERE c.id IN (@a, @b) AND c.kind = @kind`.

    Returns the accepted values by property, all of which must be met; empty without WHERE. Raises 400 for any other
    SQL, and for a body without a query.
    """
    try:
        sent = msgspec.json.decode(request.body, type=SqlQuery)
    except msgspec.DecodeError as error:
        raise HttpError(400, f"the body is not a query: {error}") from None
    parameters = {parameter.name: parameter.value for parameter in sent.parameters or ()}

    statement = STATEMENT.fullmatch(sent.query)
    if statement is None:
        raise _unsupported(sent.query)
    conditions = dict[str, list[Any]]()
    for text in AND.split(statement["where"]) if statement["where"] else ():
        condition = CONDITION.fullmatch(text)
        if condition is None or condition["alias"].lower() != statement["alias"].lower():
            raise _unsupported(text)
        values = VALUE.findall(text)
        if any(value not in parameters for value in values if value[0] == "@"):
            raise _unsupported(text)
        accepted = [parameters.get(value, value.strip('"')) for value in values]
        before = conditions.get(condition["name"])
        conditions[condition["name"]] = [value for value in accepted if before is None or value in before]
    return conditions


def _unsupported(text: str) -> HttpError:
    return HttpError(400, f"{UNSUPPORTED}; not {text[:80]!r}")


def meets(item: Mapping[str, Any], conditions: Conditions) -> bool:
    """Return whether an item meets all conditions."""
    return all(name in item and item[name] in values for name, values in conditions.items())


def query(context: RequestContext) -> HttpResponse:
    """Return one page of a query."""
    statement = parse_query(context.request)
    partitions, key = _partitions_and_key(context)
    everywhere = context.request.flag(b"x-ms-documentdb-query-enablecrosspartition")
    if key is None and RANGE_HEADER not in context.request.headers and not everywhere:
        raise HttpError(400, "Cross partition query is required but disabled; enable it, or name a partition key.")
    return _page_response(context, statement, partitions, key)


def feed(context: RequestContext) -> HttpResponse:
    """Return one page of all items."""
    if context.request.headers.get(b"a-im"):
        raise HttpError(400, "the change feed is not emulated")
    return _page_response(context, None, *_partitions_and_key(context))


def _partitions_and_key(context: RequestContext) -> tuple[Sequence[Partition], bytes | None]:
    """Return the physical partitions that a query or a feed (a list of all items) reads, and the key that it reads.

    A request with a partition key reads the partition of the key; the key is returned encoded. One with the id of a
    range of keys reads the partition of this range, other requests all partitions; their key is None.
    """
    if context.request.headers.get(HEADER, b"[]") != b"[]":  # the JSON list of the key; empty for all
        key = key_of(context.request)
        return (context.partition_of(key),), key

    range_id = context.request.header(RANGE_HEADER)
    partitions = context.container.partitions
    return ((partitions.with_id(range_id),) if range_id else partitions.all), None


def _page_response(
    context: RequestContext, statement: Conditions | None, partitions: Sequence[Partition], key: bytes | None
) -> HttpResponse:
    """Read one page of a query or, without *statement*, of a feed, which has all items; return it as JSON.

    statement   accepted values by property
    partitions  those to read; each is charged for its items, and refuses the page with 429 if its budget of RU/s
                is spent
    key         encoded partition key of the only items to return; None for items of all keys
    """
    for partition in partitions:
        partition.admit(context.now, context.request.region)

    conditions = statement or {}
    candidates = _candidate_documents(context, conditions, partitions, key)
    page = _read_page(context, conditions, candidates)
    charge_ru = sum(_charge_partition(context, partition, page, is_feed=statement is None) for partition in partitions)

    documents = b",".join(document.body for document in page.loaded)
    body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (
        context.container.rid.encode(), documents, len(page.loaded),
    )  # fmt: skip
    return HttpResponse(200, body, _page_headers(context, partitions, page), round(charge_ru, 2))


def _page_headers(context: RequestContext, partitions: Sequence[Partition], page: "Page") -> dict[str, str]:
    """Return the headers of a page with items of *partitions*: their number, session tokens, and the continuation.

    A page from several partitions has no id of a range of keys, and the session tokens of all of them.
    """
    headers = context.headers(partitions[0]) | {"x-ms-item-count": str(len(page.loaded))}
    if len(partitions) > 1:
        del headers["x-ms-documentdb-partitionkeyrangeid"]
        headers["x-ms-session-token"] = ",".join(partition.session_token for partition in partitions)
    if page.continuation:
        headers["x-ms-continuation"] = page.continuation
    return headers


@dataclass(slots=True)
class Page:
    """Documents read for one page."""

    loaded: list[Document] = field(default_factory=list)
    scanned: list[Document] = field(default_factory=list)  # loaded without a match
    continuation: str = ""


def _charge_partition(context: RequestContext, partition: Partition, page: Page, *, is_feed: bool) -> float:
    """Deduct the charge of a page's documents in a partition from its budget; return the request units.

    A query is also charged for documents that it scanned, read without a match. A feed returns all, and scans none.
    """
    charges = context.account.charges
    loaded = [document.size for document in page.loaded if document.partition is partition]
    if is_feed:
        charge_ru = charges.feed(loaded, strong=context.strong)
    else:
        scanned = [document.size for document in page.scanned if document.partition is partition]
        charge_ru = charges.query(loaded, scanned, strong=context.strong)
    partition.charge(context.now, charge_ru, context.request.region)
    return charge_ru


def _read_page(context: RequestContext, conditions: Conditions, documents: Iterable[Document]) -> Page:
    """Return the first of *documents* that meet all conditions (accepted values by property), as many as fit a page.

    A page ends before the document that exceeds the number of items that the client asked for, or 4 MB, though it
    has one document at least. Its continuation is the last one's serial, its number in the order of creation. Without
    an index, documents that do not meet the conditions are kept as scanned, as they are charged; a condition on ids
    needs no index.
    """
    wanted_items = _number_in_header(context.request, "x-ms-max-item-count", 100)
    max_items = wanted_items if wanted_items > 0 else MAX_PAGE_ITEMS
    bytes_left = MAX_PAGE_BYTES
    is_scan = bool(conditions) and "id" not in conditions and not context.container.is_indexed

    page = Page()
    for document in documents:
        if conditions and not meets(document.parsed(), conditions):
            if is_scan:
                page.scanned.append(document)
            continue
        if len(page.loaded) >= max_items or (page.loaded and len(document.body) > bytes_left):
            page.continuation = str(page.loaded[-1].serial)
            break
        page.loaded.append(document)
        bytes_left -= len(document.body) + 1  # and a comma
    return page


def _candidate_documents(
    context: RequestContext, conditions: Conditions, partitions: Sequence[Partition], key: bytes | None
) -> Iterator[Document]:
    """Yield the documents that a query must look at, by serial (their number in the order of creation).

    The continuation in the request's headers is the last serial of the page before.

    partitions  all physical partitions of the container, or the one that is read
    key         the encoded partition key that is read; None for all
    """
    request = context.request
    last_serial = _number_in_header(request, "x-ms-continuation", 0)
    # A range of effective partition keys, which are hashes. Without an end, all documents match.
    first_hash = request.header(b"x-ms-start-epk").upper()
    end_hash = request.header(b"x-ms-end-epk").upper()

    accepted_ids = set(map(str, conditions.get("id", ())))

    for document in context.container.documents.after(last_serial):
        if document.partition not in partitions:
            continue
        if "id" in conditions and document.id not in accepted_ids:
            continue
        if key is not None and document.key != key:
            continue
        if end_hash and not first_hash <= hash_of(document.key) < end_hash:
            continue
        yield document


def _number_in_header(request: Request, header: str, default: int) -> int:
    """Return the number in a header, *default* without it; raises HttpError 400."""
    text = request.header(header.encode()) or str(default)
    if not NUMBER.fullmatch(text):
        raise HttpError(400, f"{header} must be -1 or a number, and not {text[:40]!r}")
    return int(text)
