"""How the keys in Redis are named: the layout is a promise to the servers that hold it, and to a cluster."""

from redis.cluster import parse_cluster_slots
from redis.crc import key_slot
from xxhash import xxh3_64_intdigest

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.redis.footprint import BUCKETS
from hotplate.stores.redis.keys import Keys
from tests.support.stores import FIRST

INCARNATION = "0123456789ab"
RELEASE = ReleaseRef(FIRST, INCARNATION)
KEYS = ["user:1", "user:2", "item:a/b", "popular:", "user:é", "user:{x}", "meta:manifest"]


def test_row_is_in_the_bucket_of_its_key_and_one_slot() -> None:
    names = [name.decode() for name in Keys("shop").release(RELEASE).located(KEYS).names]
    assert names == [f"shop:{{{INCARNATION}.{xxh3_64_intdigest(key.encode()) % BUCKETS}}}:{key}" for key in KEYS]
    assert names[0] == "shop:{0123456789ab.1}:user:1"  # of releases that are stored, for as long as they are


def test_redis_py_computes_slots_and_reads_layouts_as_servers_state_them() -> None:
    assert (key_slot(b"shop:{0123456789ab.1}:user:1"), key_slot(b"{0123456789ab.1}")) == (
        key_slot(b"0123456789ab.1"),
    ) * 2
    assert key_slot(b"123456789") == 0x31C3  # as the cluster's specification has it
    reply = [[0, 16383, [b"127.0.0.1", 7000, b"id", []], [b"", 7001, b"id", []]]]
    (layout,) = parse_cluster_slots(reply, current_host="asked").items()
    assert layout == ((0, 16383), {"primary": ("127.0.0.1", 7000), "replicas": [("asked", 7001)]})
