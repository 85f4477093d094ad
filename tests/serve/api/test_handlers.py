"""Every route and refusal as callers see it, with its options and cache headers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.limited_service import counted
from tests.support.service import Answer, Service, a_list, ids, published, running

ODD_IDS = [
    "a/b", "100%", "%FF", "quo\"te's", "😀", "a b+c", "?n=1", "é" * 128, "..", "#", "\\", "\n", "null", "0" * 256,
]  # fmt: skip
ODD = ["a,b", 'quo"te', "\\", "é", "😀", "a b+c", "%2C", "\n"]
ORIGIN = "https://shop.example"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("http") / "store"
    lists = {f"user:{user}": a_list(f"for {user}", "second", "third") for user in ODD_IDS}
    lists |= {"user:42": a_list(*map(str, range(20))), "user:empty": b"", "item:a/b": a_list("x", "y")}
    lists |= {"popular:France": a_list("vin", "pain"), "user:odd": a_list(*ODD), "item:7": a_list("x", "y", "z")}
    return folder, published(folder, lists)


@pytest.fixture(scope="module")
def service(release: tuple[Path, str]) -> Iterator[Service]:
    with running(release[0], "--cors-origin", ORIGIN, "--cors-origin", "http://localhost:3000") as running_service:
        yield running_service


def batch(service: Service, **fields: object) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    answer = service.post("/v1/recommendations", fields)
    assert answer.status == 200, answer.body
    return answer.json


def refused(answer: Answer, status: int, problem: str) -> str:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["type"] == f"urn:hotplate:problem:{problem}"
    assert answer.json["status"] == status
    assert answer.headers["x-request-id"]
    return str(answer.json["detail"])


def test_a_known_user_gets_the_personal_list_cut_to_ten(service: Service, release: tuple[Path, str]) -> None:
    answer = service.get("/v1/recommendations/42")
    assert ids(answer) == [str(n) for n in range(10)]
    assert answer.json["user"] == "42"
    assert answer.json["source"] == "personal"
    assert answer.json["tier"] == "file"
    assert answer.json["release"] == answer.headers["x-hotplate-release"] == release[1]
    assert answer.json["items"][0] == {"id": "0", "score": 1.0, "title": "Title 0"}
    assert re.fullmatch(r"app;dur=\d+\.\d+", answer.headers["server-timing"])
    for n, length in ((1, 1), (15, 15), (20, 20), (1000, 20)):
        assert len(ids(service.get(f"/v1/recommendations/42?n={n}"))) == length


def test_any_id_reaches_its_own_list(service: Service) -> None:
    for user in ODD_IDS:
        answer = service.get(f"/v1/recommendations/{quote(user, safe='')}")
        assert ids(answer) == [f"for {user}", "second", "third"]
        assert answer.json["user"] == user


def test_unknown_and_exhausted_users_get_a_marked_popular_list(service: Service) -> None:
    for user in ("nobody", "empty", "42%20"):
        answer = service.get(f"/v1/recommendations/{user}")
        assert ids(answer) == ["p1", "p2", "p3"]
        assert answer.json["source"] == "popular"
    assert ids(service.get("/v1/recommendations/nobody?segment=France&n=1")) == ["vin"]
    assert ids(service.get("/v1/recommendations/nobody?segment=Atlantis")) == ["p1", "p2", "p3"]


def test_impossible_ids_are_refused_with_a_message(service: Service) -> None:
    assert "UTF-8" in refused(service.get("/v1/recommendations/%FF"), 400, "bad-parameter")
    assert "256 bytes" in refused(service.get(f"/v1/recommendations/{'x' * 257}"), 400, "bad-parameter")
    assert "256 bytes" in refused(service.get("/v1/recommendations/"), 400, "bad-parameter")
    assert "%2F" in refused(service.get("/v1/recommendations/a/b"), 404, "no-such-route")
    long = refused(service.get(f"/v1/recommendations/{'x' * 10_240}"), 400, "bad-request")
    assert len(long) < 200


def test_similar_items_and_the_popular_list(service: Service) -> None:
    similar = service.get("/v1/similar/a%2Fb?n=1")
    assert (ids(similar), similar.json["source"], similar.json["item"]) == (["x"], "similar", "a/b")
    unknown = service.get("/v1/similar/unknown")
    assert (ids(unknown), unknown.json["source"]) == (["p1", "p2", "p3"], "popular")
    popular = service.get("/v1/popular?segment=France")
    assert (ids(popular), popular.json["source"]) == (["vin", "pain"], "popular")


def test_many_users_are_answered_in_order(service: Service, release: tuple[Path, str]) -> None:
    answer = batch(service, users=["42", "nobody", "a/b", "42"], n=2)
    assert answer["release"] == release[1]
    results = [(result["user"], result["status"], result["source"], ids(result)) for result in answer["results"]]
    assert results == [
        ("42", "ok", "personal", ["0", "1"]),
        ("nobody", "unknown", "popular", ["p1", "p2"]),
        ("a/b", "ok", "personal", ["for a/b", "second"]),
        ("42", "ok", "personal", ["0", "1"]),
    ]
    assert batch(service, users=[])["results"] == []
    before = counted(service, "hotplate_lookups_total", outcome="hit", source="personal")
    assert len(batch(service, users=["42"] * 2000)["results"]) == 2000
    assert counted(service, "hotplate_lookups_total", outcome="hit", source="personal") == before + 1


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"{}", "missing required field `users`"),
        (b'{"users": [42]}', r"users\[0\] cannot be used: expected `str \| object`, got `int`"),
        (b'{"users": ["\xc3\xa9' + b"\xc3\xa9" * 128 + b'"]}', r"users\[0\].*256 bytes.*258"),
        (b'{"users": [], "user": 1}', "unknown field `user`; POST /v1/recommendations takes n, .* segment, users"),
        (b'{"users": [' + b"[" * 100_000, "cannot be used|not JSON"),
        (b'{"users": ["1"], "n": 1000, "exclude": [' + b",".join([b'"1"'] * 201) + b"]}", "length <= 200"),
        (b'{"users": [' + b",".join([b'"1"'] * 21) + b'], "n": 1000}', "at most 20000 items.*21 times 1000"),
        (b'{"users": ["1", ""]}', r"users\[1\].*length >= 1"),
        (b'{"users": ["\\ud800"]}', "JSON|Unicode"),
        (b'{"users": [], "n": 0}', "n cannot be used: expected `int` >= 1"),
        (b'{"users": [], "n": 1.5}', "n cannot be used: expected `int`, got `float`"),
        (b'{"users": [], "n": 1001.0}', "n cannot be used: expected `int` <= 1000"),
        (b'{"n": 10.0, "users": [42]}', r"users\[0\] cannot be used: expected `str \| object`, got `int`"),
        (b'{"n": 10.0, "users": [], "user": 1}', "unknown field `user`"),
        (b'{"users": [' + b",".join([b'"1"'] * 2001) + b"]}", "length <= 2000"),
    ],
)
def test_malformed_body_is_refused(service: Service, body: bytes, sentence: str) -> None:
    assert re.search(sentence, refused(service.post("/v1/recommendations", body), 400, "bad-parameter"))


def test_unknown_paths_and_methods_get_problem_documents(service: Service) -> None:
    for path in ("/nothing", "/metrics"):
        refused(service.get(path), 404, "no-such-route")
    assert "--events" in refused(service.post("/v1/events", b"{}"), 404, "no-such-route")
    answer = service.request("DELETE", "/v1/popular")
    refused(answer, 405, "no-such-method")
    assert answer.headers["allow"] == "GET, HEAD"
    assert service.get("/v1/recommendations").headers["allow"] == "POST"


def test_excluded_items_are_replaced_from_the_stored_list(service: Service) -> None:
    path = "/v1/recommendations/42"
    assert ids(service.get(f"{path}?exclude=0,3,nothing")) == ["1", "2", *map(str, range(4, 12))]
    assert ids(service.get(f"{path}?n=2&exclude={','.join(map(str, range(17)))}")) == ["17", "18"]
    assert ids(service.get("/v1/similar/7?n=2&exclude=x")) == ["y", "z"]
    assert ids(service.get("/v1/popular?exclude=p1,p3")) == ["p2"]
    assert ids(service.get("/v1/recommendations/nobody?exclude=p1")) == ["p2", "p3"]


@pytest.mark.parametrize("fields", ["id", "id,score,title"])
def test_popular_items_fill_lists_shortened_by_exclude(service: Service, fields: str) -> None:
    most = ",".join(map(str, range(15)))
    path = f"/v1/recommendations/42?n=10&fields={fields}"
    answer = service.get(f"{path}&exclude={most},p2&segment=France").json
    assert answer["source"] == "personal"
    items = [(item["id"], item.get("source")) for item in answer["items"]]
    own = [(str(number), None) for number in range(15, 20)]
    popular = [(name, "popular") for name in ("vin", "pain", "p1", "p3")]
    assert items == own + popular
    assert all(set(item) - {"source"} == set(fields.split(",")) for item in answer["items"])
    (result,) = batch(service, users=["42"], exclude=[*most.split(","), "p2"], fields=fields, segment="France")[
        "results"
    ]
    assert result["items"] == answer["items"]


def test_a_popular_list_names_its_segment(service: Service) -> None:
    assert service.get("/v1/recommendations/nobody?segment=France").json["segment"] == "France"
    assert service.get("/v1/recommendations/nobody?segment=Frnace").json["segment"] == ""
    assert service.get("/v1/popular").json["segment"] == ""
    assert "segment" not in service.get("/v1/recommendations/42?segment=France").json
    results = batch(service, users=["nobody", "42"], segment="France")["results"]
    assert [result.get("segment") for result in results] == ["France", None]


def test_any_id_can_be_excluded(service: Service) -> None:
    n = len(ODD) - 1
    for odd in ODD:
        remaining = [item for item in ODD if item != odd]
        assert ids(service.get(f"/v1/recommendations/odd?n={n}&exclude={quote(odd, safe='')}")) == remaining
        (result,) = batch(service, users=["odd"], n=n, exclude=[odd])["results"]
        assert ids(result) == remaining


def test_fallback_answers_are_not_cacheable(service: Service) -> None:
    def cache_of(path: str) -> str:
        return service.get(path).headers["cache-control"]

    assert cache_of("/v1/recommendations/42") == "private, no-cache"
    assert cache_of("/v1/similar/7") == cache_of("/v1/popular") == "public, max-age=60"
    assert cache_of("/v1/recommendations/nobody") == cache_of("/v1/similar/unknown") == "no-store"
    assert service.post("/v1/recommendations", b'{"users": []}').headers["cache-control"] == "no-store"


def test_every_list_has_an_etag_and_head_gives_the_same_headers(service: Service) -> None:
    for path in ("/v1/recommendations/42", "/v1/recommendations/nobody", "/v1/similar/7?n=2"):
        answer = service.get(path)
        head = service.request("HEAD", path, None)
        assert (head.status, head.body) == (200, b"")
        varying = dict.fromkeys(("date", "x-request-id", "server-timing"))
        assert answer.headers | varying == head.headers | varying
        again = service.get(path, If_None_Match=f'"other", W/{answer.headers["etag"]}')
        assert (again.status, again.body, again.headers["vary"]) == (304, b"", "Origin")
        assert service.get("/v1/popular?n=1", If_None_Match=answer.headers["etag"]).status == 200


def test_allowed_origins_may_read_answers_and_refusals(service: Service) -> None:
    for path, status in (("/v1/popular", 200), ("/v1/popular?n=0", 400), ("/nowhere", 404)):
        answer = service.get(path, Origin=ORIGIN)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        for other in ("https://evil.example", "null", "https://shop.example.evil.example"):
            answer = service.get(path, Origin=other)
            assert "access-control-allow-origin" not in answer.headers
            assert "Origin" in answer.headers["vary"]


def test_preflight_lists_allowed_methods_and_headers(service: Service) -> None:
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-api-key"}
    answer = service.request("OPTIONS", "/v1/recommendations", None, Origin="http://localhost:3000", **asks)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["access-control-allow-methods"] == "POST"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"X-API-Key", "traceparent", "tracestate", "baggage", "sentry-trace"} <= set(allowed)
    assert answer.headers["access-control-allow-credentials"] == "true"  # without it, browsers send no beacon
    for refused in ({"Origin": "https://evil.example", **asks}, {"Origin": ORIGIN}, asks):
        assert service.request("OPTIONS", "/v1/recommendations", None, **refused).status == 405
