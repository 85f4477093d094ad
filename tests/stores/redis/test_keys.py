"""How the keys in Redis are named: the layout is a promise to the servers that hold it, and to a cluster."""

import pytest
from xxhash import xxh3_64_intdigest

from stores.catalogue import ReleaseRef
from stores.errors import StoreMisused
from stores.redis.keys import BUCKETS, KEPT, Keys
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
    assert keys.states == tuple(f"shop:{{0123456789ab.{bucket}}}:@state" for bucket in range(BUCKETS))
    assert keys.state == keys.states[0]
    of_release = (*keys.lists, keys.points)
    assert of_release == tuple(f"shop:{{0123456789ab.0}}:@{what}" for what in ("keys", "meta", "points"))


def test_the_names_of_a_deployment_lie_in_one_slot() -> None:
    keys = Keys("shop")
    assert (keys.catalogue, keys.changes) == ("{shop}:catalogue", "{shop}:changes")
    assert keys.incarnations == "{shop}:incarnations"
    assert keys.catalogues == ("{shop}:catalogue", "shop:catalogue")  # the second before the layout changed
    assert Keys("shop", clustered=True).catalogues == (keys.catalogue, keys.catalogue)


def test_a_release_of_format_1_is_under_its_id() -> None:
    keys = Keys("shop").release(ReleaseRef(FIRST, FIRST))
    assert keys.rows(KEYS) == [f"shop:{FIRST}:{key}" for key in KEYS]
    assert keys.states == (f"shop:{FIRST}:@state",)


def test_the_names_of_a_few_releases_are_kept() -> None:
    keys = Keys("shop")
    for number in range(3 * KEPT):
        release = ReleaseRef(FIRST, f"{number:012x}")
        assert keys.release(release) is keys.release(release)
        assert keys.release(release).state == f"shop:{{{number:012x}.0}}:@state"
    assert len(keys._releases) == KEPT


def test_a_key_that_cannot_be_encoded_is_the_callers_mistake() -> None:
    with pytest.raises(StoreMisused, match="not valid Unicode"):
        Keys("shop").release(RELEASE).rows(["user:1", "user:\ud800"])
