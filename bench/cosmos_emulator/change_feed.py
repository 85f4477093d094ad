"""The change feed of a partition: each item that was written since, once, in the order of its last write.

https://learn.microsoft.com/azure/cosmos-db/nosql/change-feed-modes: the latest version only, so that what was deleted
is not in it. A caller goes on from the etag of the response before, which is the number of the last write that it has
seen. Assumed, as nothing is documented: a poll that finds nothing costs what a read does that finds nothing.
"""

import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from heapq import nsmallest
from operator import attrgetter

from bench.cosmos_emulator.documents import Document
from bench.cosmos_emulator.errors import bad_request
from bench.cosmos_emulator.http import Response
from bench.cosmos_emulator.items import RANGE_HEADER, RequestContext
from bench.cosmos_emulator.partition_keys import HEADER, encode
from bench.cosmos_emulator.partitions import Partition

ETAG = re.compile(r'"?(\d{1,18})"?')
PAGE_SIZE = re.compile(rb"-1|0*[1-9]\d{0,8}")
MAX_PAGE_ITEMS = 10_000
INCREMENTAL = ("incremental feed", "incremental")


def read_changes(context: RequestContext) -> Response:
    """Return one page of changes; 304 where there are none, always with the etag to go on from."""
    headers = context.request.headers
    if context.request.header(b"a-im").lower() not in INCREMENTAL:
        raise bad_request("only the latest versions of items are emulated, not all versions and deletes")
    partition, key = _where(context)
    partition.admit(context.now, context.request.region)
    since = _since(context, partition)
    size = PAGE_SIZE.fullmatch(headers.get(b"x-ms-max-item-count") or b"100")
    if size is None:
        raise bad_request("x-ms-max-item-count must be a positive number, or -1")
    most = MAX_PAGE_ITEMS if size[0] == b"-1" else int(size[0])
    page = nsmallest(most, _changed(context, partition, key, since), key=attrgetter("lsn"))
    charges, strong = context.account.charges, context.strong
    charge_ru = charges.feed([one.size for one in page], strong=strong) if page else charges.not_found(strong=strong)
    partition.charge_read(context.now, context.request.region, charge_ru)
    seen = page[-1].lsn if page else max(since, partition.lsn)
    answer = context.headers(partition, f'"{seen}"') | {"x-ms-item-count": str(len(page))}
    if not page:
        return Response(304, b"", answer, charge_ru)
    items = b",".join(b'%b,"_lsn":%d}' % ((one.body or b"{}")[:-1], one.lsn) for one in page)
    body = b'{"_rid":"%b","Documents":[%b],"_count":%d}' % (context.container.rid.encode(), items, len(page))
    return Response(200, body, answer, charge_ru)


def _where(context: RequestContext) -> tuple[Partition, bytes | None]:
    """Return the partition, and the only partition key, that is read."""
    if context.request.headers.get(HEADER, b"[]") != b"[]":
        value = context.key_value()
        return context.partition_of(value), encode(value)
    range_id, partitions = context.request.header(RANGE_HEADER), context.container.partitions
    if range_id:
        return partitions.with_id(range_id), None
    if len(partitions.all) > 1:
        raise bad_request("the change feed of several partitions is read one by one; name a partition key range")
    return partitions.all[0], None


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


def _changed(context: RequestContext, partition: Partition, key: bytes | None, since: int) -> Iterator[Document]:
    """Yield the documents that were written since, in no order."""
    container, headers = context.container, context.request.headers
    from_s = _from_s(context.request.header(b"if-modified-since"))
    start, end = (context.request.header(name).upper() for name in (b"x-ms-start-epk", b"x-ms-end-epk"))
    for document in container.documents.after():
        if document.partition is not partition or document.lsn <= since or document.ts < from_s:
            continue
        if key is not None and document.key != key:
            continue
        if container.default_ttl is not None and container.expiry(document) <= context.now:
            continue
        if b"x-ms-start-epk" in headers and not start <= container.effective_key_of(document) < end:
            continue
        yield document


def _from_s(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        raise bad_request("If-Modified-Since is no date of HTTP") from None
