"""How the keys in Redis are named: the layout is a promise to the servers that hold it, and to a cluster."""

import pytest
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.redis.keys import BUCKETS, KEPT, Keys
from tests.support.stores import FIRST

INCARNATION = "0123456789ab"
RELEASE = ReleaseRef(FIRST, INCARNATION)
KEYS = ["user:1", "user:2", "item:a/b", "popular:", "user:é", "user:{x}", "meta:manifest"]


def test_a_row_lies_in_the_bucket_of_its_key_whose_braces_name_one_slot() -> None:
    names = Keys("shop").release(RELEASE).rows(KEYS)
    assert names == [f"shop:{{{INCARNATION}.{xxh3_64_intdigest(key.encode()) % BUCKETS}}}:{key}" for key in KEYS]
    assert names[0] == "shop:{0123456789ab.1}:user:1"  # of releases that are stored, for as long as they are


def test_each_bucket_has_a_state_and_the_first_has_what_belongs_to_the_whole_release() -> None:
    keys = Keys("shop").release(RELEASE)
    states = tuple(f"shop:{{0123456789ab.{bucket}}}:@state" for bucket in range(BUCKETS))
    assert keys.steps == (states,)
    assert Keys("shop", clustered=True).release(RELEASE).steps == tuple((state,) for state in states)
    assert keys.state == states[0]
    of_release = (*keys.lists, keys.points)
    assert of_release == tuple(f"shop:{{0123456789ab.0}}:@{what}" for what in ("keys", "meta", "points"))


def test_the_names_of_a_deployment_lie_in_one_slot() -> None:
    keys = Keys("shop")
    assert (keys.catalogue, keys.changes) == ("{shop}:catalogue", "{shop}:changes")
    assert keys.incarnations == "{shop}:incarnations"


def test_the_names_of_a_few_releases_are_kept() -> None:
    keys = Keys("shop")
    for number in range(3 * KEPT):
        release = ReleaseRef(FIRST, f"{number:012x}")
        assert keys.release(release) is keys.release(release)
        assert keys.release(release).state == f"shop:{{{number:012x}.0}}:@state"
    assert len(keys._releases) == KEPT


def test_a_key_that_cannot_be_encoded_has_a_name_that_no_row_has() -> None:
    release, keys = Keys("shop").release(RELEASE), [*KEYS, "user:\ud800"]
    names, buckets = release.located(keys)
    assert [name.decode() for name in names[:-1]] == release.rows(KEYS)
    assert [release.raw_heads[bucket] for bucket in buckets] == [name[: name.index(b"}:") + 2] for name in names]
    with pytest.raises(UnicodeDecodeError):
        names[-1].decode()
