"""The catalogue's record, and the rule by which readers follow it."""

from dataclasses import replace

import orjson
import pytest

from stores import catalogue as changes
from stores.catalogue import Catalogue, ReleaseId, dump, follows, parse
from stores.errors import CatalogueUnreadable, ReleaseConflict, ReleaseNotFound

A, B, C = ReleaseId("a"), ReleaseId("b"), ReleaseId("c")


def evolved() -> Catalogue:
    found = Catalogue(store_id="s", generation=4, token="t", now=100.0)
    for release in (A, B):
        found = changes.activate(changes.commit(changes.begin(found, release), release), release)
    return changes.begin(found, C)


def test_a_catalogue_reads_back() -> None:
    assert parse(dump(evolved()), now=5.0, where="here") == evolved()
    assert parse(dump(evolved()), now=5.0, where="here").now == 5.0


@pytest.mark.parametrize(
    "change",
    [{"live": "a"}, {"live": None}, {"generation": 0}, {"generation": "4"}, {"releases": [{}]}, {"releases": None}],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CatalogueUnreadable, match="nowhere"):
        parse(orjson.dumps(orjson.loads(dump(evolved())) | change), now=0, where="nowhere")


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b"\xff", b'"x"', b"null"])
def test_what_is_no_record_is_refused(record: bytes) -> None:
    with pytest.raises(CatalogueUnreadable):
        parse(record, now=0, where="here")


def test_readers_follow_newer_rewritten_and_restored_catalogues_only() -> None:
    seen = evolved()
    assert follows(seen, None)
    assert follows(replace(seen, generation=5), seen)
    assert follows(replace(seen, token="after-failover"), seen)
    assert follows(replace(seen, store_id="anew", generation=1), seen)
    assert not follows(seen, seen)
    assert not follows(replace(seen, generation=3, token="older"), seen)
    assert not follows(Catalogue(), seen)
    assert not follows(Catalogue(), None)


def test_a_rollback_is_for_what_the_operator_saw() -> None:
    with pytest.raises(ReleaseConflict, match="no longer live"):
        changes.rollback(evolved(), A)
    back = changes.rollback(evolved(), B)
    assert back.live == A
    with pytest.raises(ReleaseNotFound, match="no earlier release"):
        changes.rollback(back, A)


def test_a_draft_cannot_go_live_and_a_dropped_release_is_gone() -> None:
    with pytest.raises(ReleaseConflict, match="still being written"):
        changes.activate(evolved(), C)
    dropping = changes.abandon(evolved(), C)
    with pytest.raises(ReleaseNotFound):
        changes.activate(dropping, C)
    assert [entry.id for entry in changes.forget(dropping, C).releases] == [A, B]
    assert changes.forget(dropping, B) == dropping
