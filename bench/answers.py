"""Whether responses were right: a sample of them compared with the lists that the store holds, item by item."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from hotplate.bench.loadgen.recorder import ResponseSample
from hotplate.bench.loadgen.result import Result
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.compression import load_decode
from hotplate.stores.connect import opened
from hotplate.stores.encoding import OFFSET_BYTES, cut, decode
from hotplate.stores.errors import StoreError
from hotplate.stores.keys import OVERALL, POPULAR, USER
from hotplate.stores.store import Reader
from hotplate.stores.verification import load_manifest

DEFAULT_N = 10

# The share of popular lists above which a run did not measure lookups of users' lists.
MAX_POPULAR = 0.01
POPULAR_SOURCE = "popular"

# Wrong lists that are described one by one.
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """How many lists were compared, how many were wrong, and a sentence about each of the first few of those.

    `fallback` of them were the popular list, marked as such, for users who have a list of their own: the service could
    not read it in time.
    """

    compared: int
    wrong: int
    fallback: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReceivedList:
    """What one response says that one user's list is."""

    user: str
    n: int
    result: dict[str, Any]


def popular_counts(result: Result) -> tuple[int, int]:
    """Return how many lists were the popular one, and how many said what they are; of a load that observes `source`."""
    sources = result.seen.get("source", {})
    return sources.get(POPULAR_SOURCE, 0), sum(count for source, count in sources.items() if source)


def popular_complaint(results: Sequence[Result], allowed: float = MAX_POPULAR) -> str | None:
    """Return a sentence where more than *allowed* of all lists were the popular one; None otherwise.

    A service gives that list when it cannot read a user's own in time, and to users without one. It costs hardly
    anything, so such a run has no latency, CPU or cost.
    """
    popular, lists = (sum(counts) for counts in zip(*map(popular_counts, results), strict=True)) if results else (0, 0)
    if popular <= allowed * lists:
        return None
    return (
        f"{popular:,} of {lists:,} lists ({popular / lists:.2%}) were the popular list instead of the user's own, and "
        f"{allowed:.2%} are allowed: the store did not answer in time, or these users have no lists"
    )


async def check_answers(url: str, samples: Sequence[ResponseSample]) -> CheckResult:
    """Compare every list in *samples* with the one that the store at *url* holds for the release that it names."""
    async with opened(url) as store:
        return await check_samples(store, samples)


async def check_samples(store: Reader, samples: Sequence[ResponseSample]) -> CheckResult:
    """Compare every list in *samples* with the one that *store* holds; a refusal has none, and counts as an error."""
    wrong = list[str]()
    compared = fallback = 0
    by_release = dict[str, list[ReceivedList]]()
    for sample in samples:
        if sample.status >= 400:
            continue
        try:
            for received in received_lists(sample):
                by_release.setdefault(received.result["release"], []).append(received)
                compared += 1
        except (ValueError, KeyError, TypeError) as error:
            compared += 1
            wrong.append(f"{sample.body[:80]!r} is not an answer: {error!r}")
    for release, lists in by_release.items():
        async for sentence in _compare(store, ReleaseId(release), lists):
            if sentence is None:
                fallback += 1
            else:
                wrong.append(sentence)
    return CheckResult(compared, len(wrong), fallback, tuple(wrong[:EXAMPLES]))


def total(results: Iterable[CheckResult]) -> CheckResult:
    """Add up the results of several stores."""
    results = list(results)
    return CheckResult(
        sum(each.compared for each in results),
        sum(each.wrong for each in results),
        sum(each.fallback for each in results),
        tuple(example for each in results for example in each.examples),
    )


def received_lists(sample: ResponseSample) -> Iterator[ReceivedList]:
    """Take a response apart; ValueError, KeyError or TypeError if it is not one."""
    head, _, body = sample.request.partition(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    response = orjson.loads(sample.body)
    if method == "POST":
        request = orjson.loads(body)
        if "data" in request:  # of scoring
            for row, result in zip(request["data"], response, strict=True):
                yield ReceivedList(row["user"], row["n"], result)
            return
        for user, result in zip(request["users"], response["results"], strict=True):
            yield ReceivedList(user, request["n"], result)
    else:
        parts = urlsplit(target)
        n = int(parse_qs(parts.query).get("n", [str(DEFAULT_N)])[0])
        yield ReceivedList(unquote(parts.path.rpartition("/")[2]), n, response)


async def _compare(store: Reader, release: ReleaseId, lists: Sequence[ReceivedList]) -> AsyncIterator[str | None]:
    """Yield a sentence for each list that is wrong, and None for each that fell back to the popular list."""
    try:
        ref = (await store.catalogue()).find(release).ref
        opened = await load_decode(store, ref, await load_manifest(store, ref))
        (slot,) = await store.get_many(ref, [POPULAR + OVERALL])
        overall = POPULAR + OVERALL
        popular = decode(opened(overall, slot)[OFFSET_BYTES:]) if isinstance(slot, bytes) else []
    except StoreError as error:
        yield f"release {release} cannot be read to compare with: {error}"
        return
    for start in range(0, len(lists), store.batch):
        chunk = lists[start : start + store.batch]
        keys = [USER + received.user for received in chunk]
        for received, key, slot in zip(chunk, keys, await store.get_many(ref, keys), strict=True):
            items = received.result["items"], received.result["source"]
            if isinstance(slot, StoreError):
                yield f"user {received.user}: {slot}"
            elif items == (popular[: received.n], "popular"):
                if slot is not None:
                    yield None
            elif slot is None or items != (decode(cut(opened(key, slot), received.n)), "personal"):
                yield f"user {received.user}: the answer is not the list that the store holds"
