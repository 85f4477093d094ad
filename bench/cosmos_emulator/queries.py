"""Queries and feeds of items, with paging and charges.

Supports `SELECT *` with properties equal to or IN parameters or literals, joined by AND; others get 400.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotplate.bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from hotplate.bench.cosmos_emulator.messages import HttpError, HttpResponse, Request, parse_json
from hotplate.bench.cosmos_emulator.partitions import HEADER, SERIAL, Document, Partition, encode, hash_of, key_of

NUMBER = re.compile(r"-1|\d{1,18}")
MAX_PAGE_BYTES = 4 * 1024 * 1024
# By default.
MAX_PAGE_ITEMS = 10_000

STATEMENT = re.compile(
    r"\s*SELECT\s+\*\s+FROM\s+(?:\w+\s+)?(?P<alias>(?!WHERE\b)\w+)(?:\s+WHERE\s+(?P<where>.+?))?\s*",
    re.IGNORECASE | re.DOTALL,
)
# A parameter, or a literal as in JSON, but with either quotation mark.
VALUE = r"""@\w+|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|-?\d+(?:\.\d+)?|true\b|false\b|null\b"""
CONDITION = re.compile(
    rf"\s*(?P<alias>\w+)\.(?P<name>\w+)\s*"
    rf"(?:=\s*(?P<one>{VALUE})|IN\s*\((?P<list>\s*(?:{VALUE})(?:\s*,\s*(?:{VALUE}))*\s*)\))\s*(?P<and>AND\b)?",
    re.IGNORECASE,
)
UNSUPPORTED = "the emulator supports only SELECT * with properties equal to or IN parameters or literals, joined by AND"

# Accepted values by property.
Conditions = Mapping[str, list[Any]]


def parse_query(request: Request) -> Conditions:
    """Parse a request's query and parameters."""
    fields = request.object()
    text = fields.get("query")
    parameters = fields.get("parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(each, dict) and "name" in each for each in parameters):
        raise HttpError(400, "the parameters of a query are a list of objects with a name and a value")
    found = STATEMENT.fullmatch(str(text))
    if found is None:
        raise HttpError(400, f"{UNSUPPORTED}; not {str(text)[:80]!r}")
    named = {str(each["name"]): each.get("value") for each in parameters}
    return dict(_conditions(found["where"], found["alias"], named)) if found["where"] else {}


def _conditions(text: str, alias: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    place = 0
    more = True
    while more:
        found = CONDITION.match(text, place)
        values = re.findall(VALUE, found["one"] or found["list"], re.IGNORECASE) if found else []
        is_known = all(value[0] != "@" or value in parameters for value in values)
        if found is None or found["alias"].lower() != alias.lower() or not is_known:
            raise HttpError(400, f"{UNSUPPORTED}; not {text[place : place + 60]!r}")
        yield found["name"], [parameters[value] if value[0] == "@" else _literal(value) for value in values]
        place = found.end()
        more = bool(found["and"])
    if place != len(text):
        raise HttpError(400, f"{UNSUPPORTED}; not {text[place : place + 60]!r}")


def _literal(text: str) -> object:
    if text[0] == "'":
        inner = text[1:-1].replace("\\'", "'").replace('"', '\\"')
        text = f'"{inner}"'
    return parse_json((text if text[0] == '"' else text.lower()).encode(), "a literal of the query")


def meets(item: Mapping[str, Any], conditions: Conditions) -> bool:
    """Return whether an item meets all conditions."""
    return all(name in item and item[name] in values for name, values in conditions.items())


def query(context: RequestContext) -> HttpResponse:
    """Return one page of a query."""
    statement = parse_query(context.request)
    partitions, key = _where(context)
    everywhere = context.request.flag(b"x-ms-documentdb-query-enablecrosspartition")
    if key is None and RANGE_HEADER not in context.request.headers and not everywhere:
        raise HttpError(400, "Cross partition query is required but disabled; enable it, or name a partition key.")
    return _respond(context, statement, partitions, key)


def feed(context: RequestContext) -> HttpResponse:
    """Return one page of all items."""
    if context.request.headers.get(b"a-im"):
        raise HttpError(400, "the change feed is not emulated")
    return _respond(context, None, *_where(context))


def _where(context: RequestContext) -> tuple[Sequence[Partition], bytes | None]:
    if context.request.headers.get(HEADER, b"[]") != b"[]":
        key = key_of(context.request)
        return (context.partition_of(key),), key
    range_id = context.request.header(RANGE_HEADER)
    partitions = context.container.partitions
    return ((partitions.with_id(range_id),) if range_id else partitions.all), None


def _respond(
    context: RequestContext, statement: Conditions | None, partitions: Sequence[Partition], key: bytes | None
) -> HttpResponse:
    """Charge each partition for its part; without *statement*, return all items."""
    for partition in partitions:
        partition.admit(context.now, context.request.region)
    conditions = statement or {}
    page = _read_page(context, conditions, _readable(context, conditions, partitions, key))
    charges = context.account.charges
    strong = context.strong
    charge_ru = 0.0
    for partition in partitions:
        loaded, scanned = (
            [one.size for one in documents if one.partition is partition] for documents in (page.loaded, page.scanned)
        )
        is_feed = statement is None
        cost = charges.feed(loaded, strong=strong) if is_feed else charges.query(loaded, scanned, strong=strong)
        partition.charge(context.now, cost, context.request.region)
        charge_ru += cost
    results = [document.body for document in page.loaded]
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
    continuation: str = ""


def _read_page(context: RequestContext, conditions: Conditions, documents: Iterable[Document]) -> Page:
    given = _number(context.request, "x-ms-max-item-count", 100)
    room = MAX_PAGE_BYTES
    size = given if given > 0 else MAX_PAGE_ITEMS
    scans = bool(conditions) and "id" not in conditions and not context.container.is_indexed
    page = Page()
    for document in documents:
        is_match = not conditions or meets(document.parsed(), conditions)
        if scans and not is_match:
            page.scanned.append(document)
        if is_match:
            if len(page.loaded) >= size or (page.loaded and len(document.body) > room):
                page.continuation = str(page.loaded[-1].serial)
                break
            page.loaded.append(document)
            room -= len(document.body) + 1
    return page


def _readable(
    context: RequestContext, conditions: Conditions, partitions: Sequence[Partition], key: bytes | None
) -> Iterator[Document]:
    headers = context.request.headers
    container = context.container
    after = _number(context.request, "x-ms-continuation", 0)
    if "id" not in conditions or container.key_property != "id":
        documents: Iterable[Document] = container.documents.after(after)
    else:
        found = filter(None, (container.documents.get(one, encode(one)) for one in set(map(str, conditions["id"]))))
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
