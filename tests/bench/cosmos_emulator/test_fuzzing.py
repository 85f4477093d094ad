"""Malformed requests, by hypothesis: the emulation answers or closes, and no other item ever changes."""

import socket

import orjson
from hypothesis import strategies as st

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from tests.support.clock import FakeClock
from tests.support.cosmos_server import Direct, emulator_thread, signed
from tests.support.property import depths, explore

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
words = st.sampled_from(
    ["id", "value", "query", "parameters", "name", "content", "indexingPolicy",
     "partitionKey", "paths", "/id", "SELECT * FROM c", "keep", "other"],
)  # fmt: skip
shaped = st.recursive(
    words | json_values, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5)
)
bodies = st.binary(max_size=60) | shaped.map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
header_names = st.sampled_from(
    ["x-ms-documentdb-partitionkey", "x-ms-documentdb-partitionkeyrangeid", "x-ms-documentdb-isquery", "if-match",
     "x-ms-documentdb-query-enablecrosspartition", "x-ms-cosmos-is-batch-request", "x-ms-documentdb-is-upsert",
     "x-ms-cosmos-is-query-plan-request", "x-ms-continuation", "x-ms-max-item-count", "x-ms-session-token", "prefer",
     "x-ms-consistency-level", "x-ms-offer-throughput", "x-ms-cosmos-offer-autopilot-settings", "if-none-match",
     "x-ms-activity-id", "a-im", "content-type", "host", "x-ms-date", "authorization"],
)  # fmt: skip
header_values = st.sampled_from(["True", '["other"]', "[null]", "[{}]", "[]", "[1,2]", "0", "-1", "99999999999", "400"])
headers = st.dictionaries(
    header_names, header_values | st.text(st.characters(max_codepoint=255), max_size=30), max_size=5
)
printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
paths = st.sampled_from(
    ["/", "/dbs", "/dbs/", "/dbs/d/", "/dbs/d/colls/", "/dbs/d/colls/c/docs/", "/dbs/d/colls/c/docs/other/",
     "/dbs/d/colls/c/pkranges/", "/offers", "/offers/x/", "/dbs/d/colls/c/docs/%ff/", "/dbs//colls/", "//", "/dbs/e/"],
) | printable.map("/dbs/d/colls/c/docs/{}".format)  # fmt: skip
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])


words_of_sql = st.sampled_from(
    ["SELECT", "*", "FROM", "c", "WHERE", "c.id", "=", "'a'", "(", ")", "AND", "OR", "NOT", "IN", ",", "@p", "1", "-",
     "ORDER BY", "c.n", "OFFSET", "LIMIT", "TOP", "VALUE", "COUNT(1)", "[", "]", "{", "}", ":", "<", "IS_DEFINED(c.x)"],
)  # fmt: skip
raw_requests = st.tuples(methods, paths, bodies).map(
    lambda parts: f"{parts[0]} {parts[1]} HTTP/1.1\r\ncontent-length: {len(parts[2]) + 1}\r\n\r\n".encode() + parts[2]
)


@depths(quick=40, soak=1000)
def test_any_request_is_answered_and_leaves_other_items_alone(examples: int) -> None:
    def check(method: str, path: str, body: bytes, fields: dict[str, str]) -> None:
        direct = Direct(FakeClock())
        kept = direct.item("POST", "keep", {"id": "keep", "n": 1}).body
        deletes_all = (method, path) in (("DELETE", "/dbs/d/"), ("DELETE", "/dbs/d/colls/c/"))
        response = direct.request(method, path, body, fields)
        assert response.status != 500
        assert set(response.headers) == {name for name in response.headers if name.isascii()}
        if not deletes_all and b"keep" not in body and "keep" not in str(fields) + path:
            assert direct.item("GET", "keep").body == kept

    explore(check, examples, method=methods, path=paths, body=bodies, fields=headers)


@depths(quick=40, soak=1000)
def test_any_query_is_answered(examples: int) -> None:
    def check(text: str) -> None:
        direct = Direct(FakeClock())
        direct.item("POST", "a", {"id": "a", "n": [1, {"x": "y"}]})
        assert direct.query(text, [{"name": "@p", "value": 1}]).status in (200, 400)

    explore(check, examples, text=st.text(max_size=80) | st.lists(words_of_sql, max_size=25).map(" ".join))


@depths(quick=10, soak=500)
def test_a_real_server_outlives_what_is_cut_off(examples: int) -> None:
    with emulator_thread(EmulatorSettings(port=0)) as (server, _):
        host, port = server.endpoint.removeprefix("http://").rstrip("/").split(":")

        def check(raw: bytes) -> None:
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(raw)
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                signing = "".join(f"{name}: {value}\r\n" for name, value in signed("GET", "", "").items())
                connection.sendall(f"GET / HTTP/1.1\r\nhost: x\r\n{signing}\r\n".encode())
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")

        explore(check, examples, raw=st.binary(max_size=400) | raw_requests)
