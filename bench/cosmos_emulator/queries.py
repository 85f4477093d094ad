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
    rf"(?:=\s*(?P<value>{VALUE})|IN\s*\((?P<list>\s*(?:{VALUE})(?:\s*,\s*(?:{VALUE}))*\s*)\))\s*(?P<and>AND\b)?",
    re.IGNORECASE,
)
UNSUPPORTED = "the emulator supports only SELECT * with properties equal to or IN parameters or literals, joined by AND"

# Accepted values by property.
Conditions = Mapping[str, list[Any]]


def parse_query(request: Request) -> Conditions:
    """Return the accepted values by property; raises 400 for what is not supported."""
    fields = request.object()
    text = fields.get("query")
    parameters = fields.get("parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(value, dict) and "name" in value for value in parameters):
        raise HttpError(400, "the parameters of a query are a list of objects with a name and a value")
    statement = STATEMENT.fullmatch(str(text))
    if statement is None:
        raise HttpError(400, f"{UNSUPPORTED}; not {str(text)[:80]!r}")
    values = {str(parameter["name"]): parameter.get("value") for parameter in parameters}
    return dict(_conditions(statement["where"], statement["alias"], values)) if statement["where"] else {}


def _conditions(text: str, alias: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yield property and accepted values of each condition of a WHERE clause; raises 400 for anything else.

    alias       that properties must begin with
    parameters  values by name, with their @
    """
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    place = 0
    more = True
    while more:
        condition = CONDITION.match(text, place)
        values = re.findall(VALUE, condition["value"] or condition["list"], re.IGNORECASE) if condition else []
        is_known = all(value[0] != "@" or value in parameters for value in values)
        if condition is None or condition["alias"].lower() != alias.lower() or not is_known:
            raise HttpError(400, f"{UNSUPPORTED}; not {text[place : place + 60]!r}")
        yield condition["name"], [parameters[value] if value[0] == "@" else _literal(value) for value in values]
        place = condition.end()
        more = bool(condition["and"])
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
    """Return the partitions that a query or feed reads, all unless the request names one, and its key, if any."""
    if context.request.headers.get(HEADER, b"[]") != b"[]":
        key = key_of(context.request)
        return (context.partition_of(key),), key
    range_id = context.request.header(RANGE_HEADER)
    partitions = context.container.partitions
    return ((partitions.with_id(range_id),) if range_id else partitions.all), None


def _respond(
    context: RequestContext, statement: Conditions | None, partitions: Sequence[Partition], key: bytes | None
) -> HttpResponse:
    """Read a page of *partitions*, and charge each of them; without *statement*, return all items.

    Any spent budget refuses the whole page with 429.
    """
    for partition in partitions:
        partition.admit(context.now, context.request.region)
    conditions = statement or {}
    page = _read_page(context, conditions, _readable(context, conditions, partitions, key))
    charge_ru = sum(_charge(context, partition, page, is_feed=statement is None) for partition in partitions)
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


def _charge(context: RequestContext, partition: Partition, page: Page, *, is_feed: bool) -> float:
    """Charge a partition for its documents of a page; return the request units."""
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
    """Read *documents* that meet all conditions, until the page has enough items or bytes.

    Without an index, those that do not meet them are scanned, unless they are found by id.
    """
    wanted = _number(context.request, "x-ms-max-item-count", 100)
    size = wanted if wanted > 0 else MAX_PAGE_ITEMS
    room = MAX_PAGE_BYTES
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
    """Yield the documents in *partitions*, of *key* unless it is None, and in the range of effective keys asked for.

    They begin after the continuation. Conditions on ids that are also keys are looked up, in which case others are not
    read.
    """
    request = context.request
    container = context.container
    documents = container.documents
    after = _number(request, "x-ms-continuation", 0)
    candidates: Iterable[Document] = documents.after(after)
    if "id" in conditions and container.key_property == "id":
        ids = set(map(str, conditions["id"]))
        known = [document for item_id in ids if (document := documents.get(item_id, encode(item_id)))]
        candidates = sorted((document for document in known if document.serial > after), key=SERIAL)
    is_everywhere = len(partitions) == len(container.partitions.all)
    start = request.header(b"x-ms-start-epk").upper()
    end = request.header(b"x-ms-end-epk").upper()
    for document in candidates:
        is_read = is_everywhere or document.partition is partitions[0]
        if is_read and key in (None, document.key) and (not end or start <= hash_of(document.key) < end):
            yield document


def _number(request: Request, header: str, default: int) -> int:
    text = request.header(header.encode()) or str(default)
    if not NUMBER.fullmatch(text):
        raise HttpError(400, f"{header} must be -1 or a number, and not {text[:40]!r}")
    return int(text)
