"""Generated lists, and the comparison of responses with a store's lists."""

import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from hotplate.base.recommendations import Item
from hotplate.base.report import format_count, format_value
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.loadgen.load import LIST_LENGTH, decode_body
from hotplate.bench.loadgen.result import POPULAR_SOURCE, ResponseSample, Result
from hotplate.bench.options import MAX_POPULAR
from hotplate.bench.verdict import Finding, Gravity
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.compression import load_decode
from hotplate.stores.connect import run_on
from hotplate.stores.encoding import ITEM, OFFSET_BYTES, OVERALL, POPULAR, USER, Decode, RowKey, decode, encode
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreUnavailable
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import publish_release
from hotplate.stores.store import ChargeCounter, Plan, Reader, Row, Store, read_one
from hotplate.stores.verification import OnProgress, load_manifest, read_results, unreported

ITEMS = 9_000
DISTINCT = 4_096
BATCH = 4_096
CHARGED_READS = 20
SPARE = 3  # for duplicates


@dataclass(frozen=True, slots=True)
class Shape:
    """Number of users, and length of their lists."""

    users: int
    items: int

    @property
    def value_bytes(self) -> int:
        """Mean bytes of a list."""
        return len(encode([Item(id="1234", score=0.1234)] * self.items)) - OFFSET_BYTES

    @property
    def plan(self) -> Plan:
        """The plan of a publish."""
        return Plan(self.users + 1, (self.users + 1) * (self.value_bytes + len(key_of(0))))

    def values(self) -> list[bytes]:
        """Return DISTINCT encoded lists that compress like real ones: popular items are in more of them.

        Items are drawn by a Zipf law, SPARE times as many as needed, since duplicates are dropped; scores descend. The
        matrices are [list, position in the list].
        """
        rng = np.random.default_rng(0)
        cumulated_weights = np.cumsum(1 / np.arange(10, ITEMS + 10))
        positions = rng.random((DISTINCT, SPARE * self.items)) * cumulated_weights[-1]
        drawn_items = np.searchsorted(cumulated_weights, positions)
        scores = -np.sort(-rng.uniform(0.1, 1.0, (DISTINCT, self.items)).round(4))

        values = list[bytes]()
        for numbers, row in zip(drawn_items.tolist(), scores.tolist(), strict=True):
            distinct_numbers = list(dict.fromkeys(numbers))[: self.items]
            items = zip(distinct_numbers, row, strict=False)
            values.append(encode(Item(id=str(1000 + number), score=score) for number, score in items))
        return values

    def batches(self, values: Sequence[bytes]) -> Iterator[list[Row]]:
        """Yield all rows in ascending order of keys."""
        yield [Row(POPULAR + OVERALL, values[0])]
        for start in range(0, self.users, BATCH):
            numbers = range(start, min(start + BATCH, self.users))
            yield [Row(key_of(number), values[number % DISTINCT]) for number in numbers]


def key_of(user: int) -> str:
    """Return a user's key; keys sort by number."""
    return f"{USER}{user:08d}"


async def publish_rows(
    store: Store, batches: Iterable[Sequence[Row]], plan: Plan, encoding: str = "json", report: OnProgress = unreported
) -> ReleaseRef:
    """Publish rows in ascending order of keys, and return the live release."""

    async def rows() -> AsyncIterator[Sequence[Row]]:
        for batch in batches:
            yield batch

    await publish_release(store, rows(), plan=plan, encoding=encoding, on_progress=report)
    return await live_in(store)


async def live_in(store: Store) -> ReleaseRef:
    """Return the live release, which was there before. Raises BenchFailed."""
    if (live := (await store.catalogue()).live_ref) is None:
        raise BenchFailed("another process removed the live release of a store")
    return live


async def first_users(store: Store, release: ReleaseRef, most: int) -> list[str]:
    """Return the ids of the first users, at most *most*, with a list in a release; BenchMisused if there are none."""
    ids = list[str]()
    async with aclosing(store.scan(release)) as scanned:
        async for row in scanned:
            if row.key.startswith(USER):
                ids.append(row.key.removeprefix(USER))
            if len(ids) == most:
                break

    if not ids:
        raise BenchMisused(f"the release {release.id} holds no user's list")
    return ids


async def read_charge(store: Store, charges: ChargeCounter, users: Sequence[str]) -> float:
    """Return the mean charge of a list in request units, of users drawn at random, always the same ones.

    *charges* observes the store.
    """
    drawn = random.Random(0).sample(users, min(len(users), CHARGED_READS))  # noqa: S311 -- no secret
    release = await live_in(store)
    spent_before_ru = charges.ru
    for user in drawn:
        await read_one(store, release, USER + user)
    return (charges.ru - spent_before_ru) / len(drawn)


SIMILAR = "/similar"
EXAMPLES = 5
# Lists of a batch that are compared, drawn at random.
BATCH_LISTS = 100
MISSED = 0.05


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Counts of compared and wrong lists, with examples.

    `fallback` counts popular lists for users with personal ones, `filtered` lists without items that no answer shows.
    `failure` says why lists could not be compared. `drawn` is the number of the responses with these lists, a random
    sample of all `answers` without the status of an error.
    """

    compared: int
    wrong: int
    fallback: int
    examples: tuple[str, ...]
    filtered: int = 0
    failure: str = ""
    drawn: int = 0
    answers: int = 0

    @property
    def findings(self) -> list[Finding]:
        """Wrong lists, and that lists could not be compared."""
        findings = list[Finding]()
        if self.wrong:
            findings.append(Finding(Gravity.WRONG, f"{self.wrong} of {self.compared} compared answers were wrong"))
        if self.failure:
            reason = f"answers were not compared with the store: {self.failure}"
            findings.append(Finding(Gravity.UNCOMPARED, reason))
        return findings

    @property
    def notes(self) -> list[str]:
        """The result in sentences."""
        if self.failure and not self.compared:
            return []
        fallback = f"{self.fallback} the popular list instead"
        notes = [f"{format_count(self.compared, 'list')} compared with the store's: {self.wrong} wrong, {fallback}."]
        if self.drawn:
            notes.append(self._coverage)
        if self.filtered:
            denied = f"{self.filtered} lacked items that no answer shows, as with a deny-list, and count as right."
            notes.append(denied)
        return [*notes, *(f"  {example}" for example in self.examples)]

    @property
    def _coverage(self) -> str:
        """The share of responses that was compared and, if no list was wrong, the share that the sample excludes."""
        compared = f"They are from {format_count(self.drawn, 'answer')}, drawn at random from {self.answers:,}"
        if self.wrong or self.failure:
            return f"{compared}."
        excluded = 1 - MISSED ** (1 / self.drawn)
        return f"{compared}: at 95 %, fewer than {format_value(excluded, 'share')} of all lists are wrong."


class ReceivedList(NamedTuple):
    """A list in a response, and what its request asked for: the key of a row, at most *n* items, and their fields.

    Without *fields*, items have all.
    """

    key: RowKey
    n: int
    result: dict[str, Any]
    fields: Sequence[str] = ()

    def stored_in(self, manifest: Manifest) -> "ReceivedList":
        """Return it with the name of its list in keys, which is empty for a default list that has a name."""
        stored_name = manifest.stored_name(self.key.list)
        if stored_name is None:
            return self
        return self._replace(key=RowKey(self.key.kind, self.key.id, stored_name))

    @property
    def label(self) -> str:
        """The key in words, as "user 7" or, of a named list, "user@basket 7"."""
        return self.key.text.replace(":", " ", 1)

    @property
    def popular_key(self) -> str:
        """The key of the popular list that the response has, or would have, instead."""
        return self.key.popular(self.result.get("segment", OVERALL)).text

    def with_fields(self, items: list[Item]) -> list[Item]:
        """Return *items* with the fields that the request asked for."""
        if not self.fields:
            return items
        return [
            cast("Item", {name: value for name, value in item.items() if name in self.fields})  # by variable names
            for item in items
        ]


def popular_complaint(results: Sequence[Result], allowed: float = MAX_POPULAR) -> str | None:
    """Return a sentence if more than *allowed* of the lists were popular."""
    popular = sum(result.popular_lists for result in results)
    lists = sum(result.lists for result in results)
    if popular <= allowed * lists:
        return None
    return (
        f"{popular:,} of {lists:,} lists ({popular / lists:.2%}) were the popular list instead of the user's own, and "
        f"{allowed:.2%} are allowed: the store did not answer in time, or these users have no lists"
    )


def check_answers(url: str, samples: Sequence[ResponseSample], answers: int = 0) -> CheckResult:
    """Compare responses with the lists of the store at *url*, as `check_samples`; they are a sample of all *answers*.

    A StoreError, or Ctrl-C, is a failure: what was measured before is reported.
    """
    try:
        return run_on(url, partial(check_samples, samples=samples, answers=answers))
    except StoreError as error:
        return CheckResult(0, 0, 0, (), failure=str(error))
    except KeyboardInterrupt:
        return CheckResult(0, 0, 0, (), failure="the comparison was stopped")


async def check_samples(store: Reader, samples: Sequence[ResponseSample], answers: int = 0) -> CheckResult:
    """Compare the lists in sampled responses with those of their releases in *store*; skips error responses.

    Of a large batch, BATCH_LISTS are compared. A response that cannot be parsed counts as a wrong one. Raises
    StoreUnavailable.
    """
    comparison = _Comparison(store)
    drawn = 0
    by_release = dict[str, list[ReceivedList]]()
    for sample in samples:
        if sample.status >= 400:
            continue
        drawn += 1
        try:
            lists = list(_received_lists(sample))
            for received in random.sample(lists, min(len(lists), BATCH_LISTS)):
                by_release.setdefault(received.result["release"], []).append(received)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            comparison.compared += 1
            comparison.wrong.append(f"{sample.body[:80]!r} is not an answer: {error!r}")

    for release, lists in by_release.items():
        await comparison.compare(ReleaseId(release), lists)
    return replace(comparison.result, drawn=drawn, answers=answers)


def _received_lists(sample: ResponseSample) -> Iterator[ReceivedList]:
    """Yield the lists in a sampled response, each with what its request asked for.

    The response is to a GET of one list (`/v1/recommendations/USER?n=10&list=basket`), to a POST of a batch, or to the
    same in Azure ML's scoring format. Raises ValueError, KeyError, TypeError or AttributeError for another body.
    """
    _, target, _ = sample.request.split(b" ", 2)
    parts = urlsplit(target.decode())
    query = dict(parse_qsl(parts.query))
    route, _, _ = parts.path.rpartition("/")
    kind = ITEM if route.endswith(SIMILAR) else USER

    response = decode_body(sample.head, sample.body)
    results = response if isinstance(response, list) else response.get("results", [response])
    for key, result in zip(sample.keys, results, strict=True):
        yield ReceivedList(
            key=RowKey(kind, key, query.get("list", "")),
            n=int(query.get("n", LIST_LENGTH)),
            result=result,
            fields=query["fields"].split(",") if "fields" in query else (),
        )


class _Comparison:
    """Received lists compared with those of a store; `wrong` has a sentence for each wrong list.

    `unknown` says which lists could not be compared.
    """

    def __init__(self, store: Reader) -> None:
        self._store = store
        # Ids of items that any answer shows, and lists with the ids that they lack.
        self._shown = set[str]()
        self._lacking = list[tuple[str, set[str]]]()
        self.wrong = list[str]()
        self.unknown = list[str]()
        self.compared = self._fallback = 0

    @property
    def result(self) -> CheckResult:
        """The result; a list without an item is wrong if another answer shows that item."""
        wrong = [*self.wrong, *(_not_stored(label) for label, ids in self._lacking if ids & self._shown)]
        filtered = len(self._lacking) - (len(wrong) - len(self.wrong))
        return CheckResult(
            compared=self.compared,
            wrong=len(wrong),
            fallback=self._fallback,
            examples=tuple(wrong[:EXAMPLES]),
            filtered=filtered,
            failure="; ".join(self.unknown),
        )

    async def compare(self, release: ReleaseId, lists: Sequence[ReceivedList]) -> None:
        """Read the lists of a release from the store, and compare the received *lists* with them.

        Each wrong list adds a sentence to `self.wrong`. A release that cannot be read, such as one that was dropped, or
        that of another store, adds one to `self.unknown` for all its lists. Raises StoreUnavailable.
        """
        try:
            ref = (await self._store.catalogue()).find(release).ref  # its incarnation is unique to one write
            manifest = await load_manifest(self._store, ref)
            decompress = await load_decode(self._store, ref, manifest)
        except StoreUnavailable:
            raise  # the lists may be right
        except StoreError as error:
            self.unknown.append(
                f"{format_count(len(lists), 'list')} of release {release}, which cannot be read ({error})"
            )
            return

        self.compared += len(lists)
        lists = [received.stored_in(manifest) for received in lists]
        keys = list(dict.fromkeys(key for received in lists for key in (received.key.text, received.popular_key)))
        stored = dict(zip(keys, await _read_lists(self._store, ref, decompress, keys), strict=True))
        for received in lists:
            own_list = stored[received.key.text]
            popular = stored[received.popular_key]
            if isinstance(own_list, ReleaseCorrupt):
                self.wrong.append(f"{received.label}: {own_list}")
            else:  # a popular list that is missing or damaged is empty
                self._compare_list(received, own_list, popular if isinstance(popular, list) else [])

    def _compare_list(self, received: ReceivedList, own: list[Item] | None, popular: list[Item]) -> None:
        """Compare a received list with the stored one: *own*, or *popular* if the response has this source.

        *own* is None if the user, or the item, has no list. A received list may omit stored items, but not have others
        or another order. Omitted items are kept with the list, in `_lacking`, to be judged after all comparisons.
        """
        items = received.result["items"]
        is_popular = received.result["source"] == POPULAR_SOURCE
        stored = popular if is_popular else own
        omitted_ids = None if stored is None else _left_out(items, received.with_fields(stored), received.n)
        if omitted_ids is None:
            self.wrong.append(_not_stored(received.label))
            return

        self._fallback += is_popular and own is not None
        self._shown.update(item["id"] for item in items)
        if omitted_ids:
            self._lacking.append((received.label, omitted_ids))


async def _read_lists(
    store: Reader, ref: ReleaseRef, decompress: Decode, keys: Sequence[str]
) -> list[list[Item] | ReleaseCorrupt | None]:
    """Return the list of each key: None if it is missing, an error if it is damaged. Raises other StoreErrors."""
    lists = list[list[Item] | ReleaseCorrupt | None]()
    async for key, value in read_results(store, ref, keys):
        if isinstance(value, bytes):
            lists.append(decode(decompress(key, value)[OFFSET_BYTES:]))
        else:
            lists.append(value)
    return lists


def _not_stored(label: str) -> str:
    return f"{label}: the answer is not the list that the store holds"


def _left_out(items: list[Item], stored: list[Item], n: int) -> set[str] | None:
    """Return the ids of *stored* items that *items*, an answer of at most *n*, omits; None if it is not a part of them.

    Its items must be stored, in the same order. A, C of A, B, C, D omits B or, if *n* is above 2, B and D.
    """
    omitted = set[str]()
    following = iter(stored)
    for item in items:
        for candidate in following:  # goes on after the item found last
            if candidate == item:
                break
            omitted.add(candidate["id"])
        else:
            return None

    # A full answer ends where it may; a shorter one also omits all that follow.
    return omitted if len(items) == n else omitted | {item["id"] for item in following}
