"""Route handlers: from parameters to response bytes."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partialmethod
from itertools import islice

import msgspec
import orjson
from aiohttp import hdrs, web
from xxhash import xxh3_64_hexdigest

from hotplate.serve.access.auth import CALLER, Guard
from hotplate.serve.access.keys import ADMIN
from hotplate.serve.api.parameters import parse_batch, parse_fold_in, parse_id
from hotplate.serve.api.routes import JSON, MSGPACK
from hotplate.serve.api.schemas import BatchBody, NoQuery, UserPage
from hotplate.serve.errors import FoldInFull
from hotplate.serve.lists.baskets import compute_list
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.options import FILTERED, PreviewSelection
from hotplate.serve.lists.paging import parse_cursor
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.requests import ListAnswer, ListRequest, answer_list, read_lists, shape_lists
from hotplate.serve.lists.shaping import MAX_AGE_S, Shaper
from hotplate.serve.problems import Problem, overloaded
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.encoding import ITEM, POPULAR, USER
from hotplate.stores.errors import ReleaseNotFound

PRIVATE = "private, no-cache"
# For lists that everybody shares; a CDN sees a new release a minute late.
SHARED = f"public, max-age={MAX_AGE_S}"
# The same with keys, which a shared cache would not check.
UNSHARED = f"private, max-age={MAX_AGE_S}"
# For fallbacks: the requested list may exist later.
NO_STORE = "no-store"

# Items of a batch before other requests run: one or two milliseconds.
PIECE_ITEMS = 1280

# The weight of a media type that is not accepted.
ZERO_WEIGHT = re.compile(r"\bq=0(?:\.0*)?\s*(?:;|$)")

# Headers with the releases of the lists.
RELEASE = "X-Hotplate-Release"
CANARY = "X-Hotplate-Canary"

# An answered list, for the access log and traces.
LIST_ANSWER = web.RequestKey("list answer", ListAnswer)


class ListHandlers:
    """Each handler takes a request, an encoded id, and a query."""

    def __init__(self, reader: TieredReader, shaper: Shaper, guard: Guard) -> None:
        """*guard* checks who may look at releases that are not live."""
        self._reader = reader
        self._shaper = shaper
        self._guard = guard
        self.shared_cache = UNSHARED if guard.reads_take_a_key else SHARED
        """The Cache-Control of lists that everybody shares."""

    async def recommend_many(
        self, request: web.BaseRequest, _raw_id: str, _query: NoQuery, body: bytes
    ) -> web.Response:
        """`POST /v1/recommendations`: answer with the lists of many users, as JSON or, by the Accept header, msgpack.

        The body has the users and the parameters for all of them. The answer is an object with the release and a
        result per user, in their order; a user without a list gets the popular one. It is made in pieces of about
        PIECE_ITEMS items, and other requests run between them.
        """
        batch = parse_batch(body, request.content_type)
        requests = _requests_of(batch)
        lists = await read_lists(self._reader, requests)

        release_headers = releases(lists)
        if not lists:  # an empty batch: check its list name and find the release all the same
            self._reader.row_of(POPULAR, batch.segment, batch.list)  # raises UnknownList
            release_headers = {RELEASE: self._reader.live_id()}
        release = release_headers[RELEASE]

        elements = results(requests, lists, self._shaper)  # JSON objects, made when they are iterated over
        users_per_piece = _users_per_piece(batch, requests)
        if _accepts_msgpack(request.headers.get(hdrs.ACCEPT, "")):
            media = MSGPACK
            content = _packed_head(release, len(lists)) + b"".join(await in_pieces(elements, users_per_piece, _packed))
        else:
            media = JSON
            joined = b",\n".join(await in_pieces(elements, users_per_piece))
            content = b'{"release":"%b","results":[%b]}' % (release.encode(), joined)
        headers = {"Content-Type": media, "Cache-Control": NO_STORE, "Vary": "Accept", **release_headers}
        return web.Response(body=content, headers=headers)

    async def fold_in(self, request: web.BaseRequest, _raw_id: str, _query: NoQuery, body: bytes) -> web.Response:
        """`POST /v1/recommendations/fold-in`: answer with a list for a basket of items, as of a visitor without an id.

        The list is computed from the item factors of the release; it is the popular list if no item of the basket is
        known. The answer has the numbers of items that are known and unknown. Raises a Problem (503) while too many
        lists are being computed.
        """
        options = parse_fold_in(body)

        # Pairs of an item's id and its weight; None is the default weight.
        basket = [(item, None) if isinstance(item, str) else (item.id, item.weight) for item in options.items]
        try:
            result = await compute_list(self._reader, basket, options, recency=options.recency)
        except FoldInFull as error:
            self._reader.metrics.count_shed("fold_in")
            raise overloaded(str(error)) from None

        # Filter and cut the list; items of the basket are not recommended.
        encoded = result.encoded
        basket_items = [item for item, _ in basket]
        items = self._shaper.shape(encoded, options, beside=basket_items)
        request[LIST_ANSWER] = ListAnswer(encoded, items)

        counts = b'"known":%d,"unknown":%d,' % (result.known, result.unknown)
        response_body = list_body(counts, list_head(encoded), items)
        return web.Response(body=response_body, headers=list_headers(encoded, "fold-in", NO_STORE))

    async def _answer(self, kind: str, request: web.BaseRequest, raw_id: str, query: PreviewSelection) -> web.Response:
        """Read a list, and answer with it, or with 304 if the client has it (`If-None-Match`).

        *kind* is USER, ITEM or POPULAR, whose *raw_id* is empty. A fallback must not be cached, nor a first page that
        answers a request for a later one, because the release of that was replaced.
        """
        identifier = ""
        subject = b""  # the first members of the JSON object
        if kind != POPULAR:
            name = kind.removesuffix(":")  # `user` or `item`
            identifier = parse_id(raw_id, name)
            subject = b'"%b":%b,' % (name.encode(), orjson.dumps(identifier))
        wanted = ListRequest(
            kind, identifier, selection=query, after=parse_cursor(query.after) if query.after else None
        )
        answer = await self._read(request, wanted, query.release)

        # A first page instead of the requested one, a preview, or an item that leaves soon.
        is_shared = kind != USER
        cache = self.shared_cache if is_shared else PRIVATE
        is_leaving = is_shared and not self._shaper.may_be_kept(answer.encoded.release, answer.items)
        if answer.restarted or query.release or is_leaving:
            cache = NO_STORE
        headers = list_headers(answer.encoded, wanted.source, cache)
        body = list_body(subject + _paging_members(answer), list_head(answer.encoded), answer.items)
        return conditional(request, body, headers)

    recommend = partialmethod(_answer, USER)
    similar = partialmethod(_answer, ITEM)
    popular = partialmethod(_answer, POPULAR)

    async def _read(self, request: web.BaseRequest, wanted: ListRequest, release: str) -> ListAnswer:
        """Return the answer in the release that is served to the caller or, for an operator, in that of this id.

        The latter raises a Problem: 401 or 403 for others, 404 if it can be read in no store.
        """
        if not release:
            answer = await answer_list(self._reader, self._shaper, wanted)
            request[LIST_ANSWER] = answer
            return answer

        self._guard.require(request[CALLER], ADMIN)
        try:
            async with self._reader.preview(ReleaseId(release)) as reader:
                return await answer_list(reader, self._shaper, wanted)
        except ReleaseNotFound as error:
            raise Problem(404, "no-such-release", str(error)) from None


def _requests_of(batch: BatchBody) -> list[ListRequest]:
    """Return a request for each user of a batch: for the list, or for a page of it if the user has a cursor."""
    selection = batch.selection  # the same for all
    requests = list[ListRequest]()
    for identifier, user in zip(batch.ids, batch.users, strict=True):
        after = parse_cursor(user.after) if isinstance(user, UserPage) else None
        requests.append(ListRequest(USER, identifier, selection=selection, after=after))
    return requests


def _paging_members(answer: ListAnswer) -> bytes:
    """Return the members of an answer that only pages have."""
    members = b""
    if answer.next is not None:
        members += b'"next":"%b",' % answer.next.encode()
    if answer.restarted:
        members += b'"restarted":true,'
    return members


def _users_per_piece(batch: BatchBody, requests: Sequence[ListRequest]) -> int:
    """Return for how many users about PIECE_ITEMS items are examined."""
    items_per_user = batch.examined
    if any(request.after is not None for request in requests):  # by pages, more are examined than answered
        items_per_user = max(items_per_user, FILTERED)
    return max(1, PIECE_ITEMS // items_per_user)


def releases(answers: Sequence[EncodedList]) -> dict[str, str]:
    """Return headers with the ids of the releases that *answers* are from: the live one, and the canary if any.

    A canary is a release that a share of the users gets. If all lists are from it, both headers name it. Without
    lists, there are no headers.
    """
    canary = next((encoded.release.id for encoded in answers if encoded.release.is_canary), None)
    live = next((encoded.release.id for encoded in answers if not encoded.release.is_canary), canary)
    return {name: release for name, release in ((RELEASE, live), (CANARY, canary)) if release is not None}


def list_headers(encoded: EncodedList, source: str, cache: str) -> dict[str, str]:
    """Return the headers of a list answer; *cache* applies to lists of the requested *source*."""
    headers = {
        "Content-Type": JSON,
        "Cache-Control": cache if encoded.source == source else NO_STORE,
        RELEASE: encoded.release.id,
    }
    if encoded.release.is_canary:
        headers[CANARY] = encoded.release.id
    return headers


def list_body(subject: bytes, head: bytes, items: bytes) -> bytes:
    """Return the body of a list answer."""
    return b"".join((b"{", subject, head, items, b"]}"))


def list_head(encoded: EncodedList) -> bytes:
    """Return the members of a list answer between its subject and its items, as JSON.

    They tell where the list is from: the release, the source (such as `personal` or `popular`), and the tier, the store
    that it was read from. The canary, the name of a named list, and the segment of a popular list are members only
    where they apply. Ends with the start of the items: `"release":"…","source":"personal","tier":"redis","items":[`.
    """
    release = encoded.release.id.encode()
    source = encoded.source.encode()
    tier = encoded.tier.encode()
    canary = b'"canary":true,' if encoded.release.is_canary else b""
    name = b'"list":"%b",' % encoded.name.encode() if encoded.name else b""
    segment = b'"segment":%b,' % orjson.dumps(encoded.segment) if encoded.source == "popular" else b""
    return b'"release":"%b",%b%b"source":"%b",%b"tier":"%b","items":[' % (release, canary, name, source, segment, tier)


def conditional(request: web.BaseRequest, body: bytes, headers: dict[str, str]) -> web.Response:
    """Answer with *body* and its ETag, or with 304 if the caller has it, by `If-None-Match`; changes *headers*."""
    headers["ETag"] = etag = f'"{xxh3_64_hexdigest(body)}"'
    known_etags = request.headers.get(hdrs.IF_NONE_MATCH)
    if known_etags is None or not is_known(etag, known_etags):
        return web.Response(body=body, headers=headers)

    del headers["Content-Type"]
    return web.Response(status=304, headers=headers)


def is_known(etag: str, known: str) -> bool:
    """Return whether an `If-None-Match` header matches."""
    return known.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(","))


def results(requests: Sequence[ListRequest], lists: Sequence[EncodedList], shaper: Shaper) -> Iterator[bytes]:
    """Yield the answer for each user of a batch as a JSON object: the user's id, the origin of the list, and its items.

    *lists* are those that were read for *requests*, in the same order. *shaper* removes the items that a request
    excludes or that its user has consumed, and cuts the list.
    """
    heads = dict[tuple[str, int], bytes]()  # the members between a user and their items
    for request, answer in zip(requests, shape_lists(shaper, requests, lists), strict=True):
        encoded = answer.encoded
        origin = encoded.status, id(encoded.release)
        if origin not in heads:
            heads[origin] = b'"status":"%b",%b' % (encoded.status.encode(), list_head(encoded))
        subject = b'"user":%b,%b' % (orjson.dumps(request.id), _paging_members(answer))
        yield list_body(subject, heads[origin], answer.items)


def _accepts_msgpack(accept: str) -> bool:
    """Return whether an Accept header names msgpack, unless its weight is 0, which excludes it (RFC 9110, 12.4.2)."""
    for media_range in accept.lower().split(","):
        media, _, parameters = media_range.partition(";")
        if media.strip() == MSGPACK:
            return ZERO_WEIGHT.search(parameters) is None
    return False


async def in_pieces(
    elements: Iterator[bytes], size: int, join: Callable[[list[bytes]], bytes] = b",\n".join
) -> list[bytes]:
    """Join *elements* in pieces of *size*; other requests run between them."""
    pieces = list[bytes]()
    while piece := list(islice(elements, size)):
        if pieces:
            await asyncio.sleep(0)
        pieces.append(join(piece))
    return pieces


def _packed_head(release: str, count: int) -> bytes:
    encode = msgspec.msgpack.encode
    # A map of two; the second is an array with a 32-bit length.
    return b"\x82" + encode("release") + encode(release) + encode("results") + b"\xdd" + count.to_bytes(4, "big")


def _packed(results: list[bytes]) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, orjson.loads(b"[" + b",".join(results) + b"]")))
