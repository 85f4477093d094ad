"""Whether answers were right: a sample of them beside the lists that the store holds, item by item."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from bench.loadgen.recorder import Sample
from stores.catalogue import ReleaseId, ReleaseRef
from stores.compression import load_decode
from stores.encoding import cut, decode
from stores.errors import StoreError
from stores.keys import OVERALL, POPULAR, USER
from stores.store import Reader
from stores.verification import load_manifest

DEFAULT_N = 10
SHOWN = 5  # wrong answers that are told one by one


@dataclass(frozen=True, slots=True)
class Checked:
    """How many lists were compared, how many were wrong, and the first few sentences about those.

    `fallback` of them were the popular list, rightly told and marked so, for users who have one of their own: the
    service could not read it in time.
    """

    compared: int
    wrong: int
    fallback: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one answer says that one user's list is."""

    user: str
    n: int
    answer: dict[str, Any]


async def check(samples: Sequence[Sample], store: Reader) -> Checked:
    """Compare every list in *samples* with the one that *store* holds for the release that the answer names."""
    wrong = list[str]()
    compared = fallback = 0
    by_release = dict[str, list[Claim]]()
    for sample in samples:
        try:
            for claim in claims(sample):
                by_release.setdefault(claim.answer["release"], []).append(claim)
                compared += 1
        except (ValueError, KeyError, TypeError) as error:
            compared += 1
            wrong.append(f"{sample.body[:80]!r} is no answer: {error!r}")
    for release, made in by_release.items():
        async for sentence in _compare(store, ReleaseRef(ReleaseId(release), release), made):
            if sentence is None:
                fallback += 1
            else:
                wrong.append(sentence)
    return Checked(compared, len(wrong), fallback, tuple(wrong[:SHOWN]))


def claims(sample: Sample) -> Iterator[Claim]:
    """Take an answer apart; ValueError, KeyError or TypeError where it is none."""
    head, _, body = sample.request.partition(b"\r\n\r\n")
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    answer = orjson.loads(sample.body)
    if method == "POST":
        asked = orjson.loads(body)
        for user, result in zip(asked["users"], answer["results"], strict=True):
            yield Claim(user, asked["n"], result)
    else:
        parts = urlsplit(target)
        n = int(parse_qs(parts.query).get("n", [str(DEFAULT_N)])[0])
        yield Claim(unquote(parts.path.rpartition("/")[2]), n, answer)


async def _compare(store: Reader, release: ReleaseRef, made: Sequence[Claim]) -> AsyncIterator[str | None]:
    """Yield a sentence for each claim that does not hold, and None for each that fell back to the popular list."""
    try:
        opened = await load_decode(store, release, await load_manifest(store, release))
        (popular,) = await store.get_many(release, [POPULAR + OVERALL])
        common = decode(opened(popular)) if isinstance(popular, bytes) else []
    except StoreError as error:
        yield f"release {release.id} cannot be read to compare with: {error}"
        return
    for start in range(0, len(made), store.batch):
        chunk = made[start : start + store.batch]
        slots = await store.get_many(release, [USER + claim.user for claim in chunk])
        for claim, slot in zip(chunk, slots, strict=True):
            told = claim.answer["items"], claim.answer["source"]
            if isinstance(slot, StoreError):
                yield f"user {claim.user}: {slot}"
            elif told == (common[: claim.n], "popular"):
                if slot is not None:
                    yield None
            elif slot is None or told != (decode(cut(opened(slot), claim.n)), "personal"):
                yield f"user {claim.user}: the answer is not the list that the store holds"
