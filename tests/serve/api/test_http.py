"""The service as its callers see it: a real process, a real store, every route, every refusal."""

import asyncio
import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.service import Answer, Service, a_list, parse_answer, publish_lists, running

ODD_IDS = [
    "a/b",
    "100%",
    "%FF",
    "quo\"te's",
    "😀",
    "a b+c",
    "?n=1",
    "é" * 128,
    "..",
    "#",
    "\\",
    "\n",
    "null",
    "0" * 256,
]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("http") / "store"
    lists = {f"user:{user}": a_list(f"for {user}", "second", "third") for user in ODD_IDS}
    lists |= {"user:42": a_list(*map(str, range(20))), "user:empty": b"", "item:a/b": a_list("x", "y")}
    lists |= {"popular:France": a_list("vin", "pain")}
    return folder, asyncio.run(publish_lists(folder, lists))


@pytest.fixture(scope="module")
def service(release: tuple[Path, str]) -> Iterator[Service]:
    with running(release[0]) as running_service:
        yield running_service


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["items"]]


def refused(answer: Answer, status: int, problem: str) -> str:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["type"] == f"urn:hotplate:problem:{problem}"
    assert answer.json["status"] == status
    assert answer.headers["x-request-id"]
    return str(answer.json["detail"])


def raw(service: Service, *parts: bytes) -> Answer:
    """Send bytes that no client library would, and read what comes until the connection closes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return parse_answer(received)


def test_a_known_user_gets_the_personal_list_cut_to_ten(service: Service, release: tuple[Path, str]) -> None:
    answer = service.get("/v1/recommendations/42")
    assert ids(answer) == [str(n) for n in range(10)]
    assert answer.json["user"] == "42"
    assert answer.json["source"] == "personal"
    assert answer.json["tier"] == "file"
    assert answer.json["release"] == answer.headers["x-hotplate-release"] == release[1]
    assert answer.json["items"][0] == {"id": "0", "score": 1.0, "title": "Title 0"}
    assert answer.headers["cache-control"] == "private, no-cache"
    assert re.fullmatch(r"app;dur=\d+\.\d+", answer.headers["server-timing"])


@pytest.mark.parametrize(("n", "length"), [(1, 1), (15, 15), (20, 20), (1000, 20)])
def test_n_cuts_and_a_shorter_list_is_answered_whole(service: Service, n: int, length: int) -> None:
    assert len(ids(service.get(f"/v1/recommendations/42?n={n}"))) == length


@pytest.mark.parametrize("n", ["0", "-1", "1001", "100000", "ten", "1.5", "", "%31%30%30%30%30", "\uff19", "1" * 5000])
def test_an_n_outside_its_bounds_is_refused(service: Service, n: str) -> None:
    for path in ("/v1/recommendations/42", "/v1/similar/x", "/v1/popular"):
        assert "from 1 to 1000" in refused(service.get(f"{path}?n={quote(n, safe='%')}"), 400, "bad-parameter")


@pytest.mark.parametrize("user", ODD_IDS)
def test_any_id_reaches_its_own_list(service: Service, user: str) -> None:
    answer = service.get(f"/v1/recommendations/{quote(user, safe='')}")
    assert ids(answer) == [f"for {user}", "second", "third"]
    assert answer.json["user"] == user


def test_unknown_and_exhausted_users_get_the_popular_list_marked_so(service: Service) -> None:
    for user in ("nobody", "empty", "42%20"):
        answer = service.get(f"/v1/recommendations/{user}")
        assert ids(answer) == ["p1", "p2", "p3"]
        assert answer.json["source"] == "popular"
    assert ids(service.get("/v1/recommendations/nobody?segment=France&n=1")) == ["vin"]
    assert ids(service.get("/v1/recommendations/nobody?segment=Atlantis")) == ["p1", "p2", "p3"]


def test_ids_that_cannot_be_are_refused_with_a_sentence(service: Service) -> None:
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
    assert popular.headers["cache-control"] == "public, max-age=60"


def test_many_users_are_answered_in_order(service: Service, release: tuple[Path, str]) -> None:
    answer = service.request("POST", "/v1/recommendations", b'{"users": ["42", "nobody", "a/b", "42"], "n": 2}')
    assert answer.status == 200
    assert answer.json["release"] == release[1]
    assert [(one["user"], one["source"], [item["id"] for item in one["items"]]) for one in answer.json["results"]] == [
        ("42", "personal", ["0", "1"]),
        ("nobody", "popular", ["p1", "p2"]),
        ("a/b", "personal", ["for a/b", "second"]),
        ("42", "personal", ["0", "1"]),
    ]
    assert service.request("POST", "/v1/recommendations", b'{"users": []}').json["results"] == []
    many = b'{"users": [' + b",".join([b'"42"'] * 2000) + b"]}"
    assert len(service.request("POST", "/v1/recommendations", many).json["results"]) == 2000


@pytest.mark.parametrize(("segment", "first"), [("France", "vin"), ("Atlantis", "p1"), ("", "p1")])
def test_those_of_many_who_have_no_list_get_the_popular_one_of_the_segment(
    service: Service, segment: str, first: str
) -> None:
    body = json.dumps({"users": ["nobody", "42", "empty"], "n": 1, "segment": segment}).encode()
    results = service.request("POST", "/v1/recommendations", body).json["results"]
    assert [(one["source"], one["items"][0]["id"]) for one in results] == [
        ("popular", first),
        ("personal", "0"),
        ("popular", first),
    ]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "list of users"),
        (b"{}", "list of users"),
        (b'{"users": "42"}', 'users must be a list of at most 2000 ids, not "42"'),
        (b'{"users": [42]}', r"users\[0\] must be a string of 1 to 256 bytes of UTF-8, not 42"),
        (b'{"users": ["\xc3\xa9' + b"\xc3\xa9" * 128 + b'"]}', r"users\[0\].*256 bytes.*258"),
        (
            b'{"users": [], "user": 1}',
            "'user' is not a parameter of POST /v1/recommendations; it has users, n, .* segment",
        ),
        (b'{"users": [], "segment": 1}', "segment must be a string of at most 256 bytes of UTF-8, not 1"),
        (b'{"users": [' + b"[" * 100_000, "at most|not JSON|must be"),
        (b'{"users": ["1"], "n": 1000, "exclude": [' + b",".join([b'"1"'] * 201) + b"]}", "at most 200 ids, not 201"),
        (b'{"users": [' + b",".join([b'"1"'] * 21) + b'], "n": 1000}', "at most 20000 items.*21 times 1000"),
        (b'{"users": ["1", ""]}', r"users\[1\].*256 bytes"),
        (b'{"users": ["\\ud800"]}', "JSON|Unicode"),
        (b'{"users": [], "n": 0}', "from 1 to 1000"),
        (b'{"users": [], "n": true}', "from 1 to 1000"),
        (b'{"users": [' + b",".join([b'"1"'] * 2001) + b"]}", "at most 2000"),
    ],
)
def test_a_body_that_cannot_be_meant_is_refused(service: Service, body: bytes, sentence: str) -> None:
    assert re.search(sentence, refused(service.request("POST", "/v1/recommendations", body), 400, "bad-parameter"))


def test_a_body_that_is_too_large_is_refused(service: Service) -> None:
    answer = service.request("POST", "/v1/recommendations", b" " * ((1 << 20) + 1))
    assert "1048576 bytes" in refused(answer, 413, "body-too-large")


def test_a_body_that_is_compressed_is_refused(service: Service) -> None:
    body = gzip.compress(b'{"users": ["42"]}')
    answer = service.request("POST", "/v1/recommendations", body, Content_Encoding="gzip")
    assert "without Content-Encoding" in refused(answer, 415, "encoded-body")


def test_an_answer_in_pieces_reaches_a_client_of_http_1_0_whole(service: Service) -> None:
    body = b'{"users": [' + b",".join([b'"42"'] * 2000) + b"]}"
    head = b"POST /v1/recommendations HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = raw(service, head + body)
    assert len(answer.json["results"]) == 2000


def test_other_paths_and_methods_are_problems_too(service: Service) -> None:
    refused(service.get("/nothing"), 404, "no-such-route")
    refused(service.get("/v2/popular"), 404, "no-such-route")
    answer = service.request("DELETE", "/v1/popular")
    refused(answer, 405, "no-such-method")
    assert answer.headers["allow"] == "GET, HEAD"
    assert service.get("/v1/recommendations").headers["allow"] == "POST"


def test_an_etag_saves_the_body(service: Service) -> None:
    first = service.get("/v1/recommendations/42")
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = service.get("/v1/recommendations/42", If_None_Match=known)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert service.get("/v1/recommendations/42", If_None_Match='"other"').body == first.body
    assert service.get("/v1/recommendations/42?n=3", If_None_Match=etag).status == 200


def test_head_is_get_without_the_body(service: Service) -> None:
    got, head = service.get("/v1/popular"), service.request("HEAD", "/v1/popular")
    assert head.body == b""
    for name in ("etag", "content-length", "content-type", "cache-control"):
        assert head.headers[name] == got.headers[name]


def test_a_request_id_is_taken_when_it_is_plain_and_made_when_it_is_not(service: Service) -> None:
    assert service.get("/v1/popular", X_Request_Id="abc-123").headers["x-request-id"] == "abc-123"
    made = {
        service.get("/v1/popular", X_Request_Id=odd).headers["x-request-id"] for odd in ("x" * 200, "a b", "<script>")
    }
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{20}", one) for one in made)


def test_health_reports_a_status_and_nothing_of_stores(service: Service) -> None:
    assert service.get("/livez").json == service.get("/health/live").json == {"status": "alive"}
    assert service.get("/readyz").json == service.get("/health/ready").json == {"status": "ready"}
    refused(service.get("/metrics"), 404, "no-such-route")


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v1/popular HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET /v1/popular HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
    ],
)
def test_what_is_not_http_is_answered_as_a_problem(service: Service, sent: bytes) -> None:
    refused(raw(service, sent), 400, "bad-request")


@pytest.mark.parametrize("raw_id", [b"\xff", "😀".encode()])
def test_bytes_that_should_have_been_percent_encoded_are_refused(service: Service, raw_id: bytes) -> None:
    answer = raw(service, b"GET /v1/recommendations/" + raw_id + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    refused(answer, 400, "bad-request")


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    one = b"GET /v1/recommendations/42?n=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/popular?n=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    body = raw(service, one * 3 + last).body
    assert body.count(b'"source":"personal"') == 3
    assert body.rindex(b'"source":"popular"') > body.rindex(b'"source":"personal"')


def test_metrics_count_every_status_and_no_id(service: Service) -> None:
    service.get("/v1/recommendations/42")
    service.get("/v1/recommendations/42?n=0")
    text = service.admin("/metrics").body.decode()
    route = 'route="/v1/recommendations/{user}"'
    assert re.search(
        rf'hotplate_http_request_duration_seconds_count{{code="200",method="GET",{re.escape(route)}}} [1-9]', text
    )
    assert re.search(
        rf'hotplate_http_request_duration_seconds_count{{code="400",method="GET",{re.escape(route)}}} [1-9]', text
    )
    assert 'le="0.00025"' in text
    assert 'hotplate_release_info{release="' in text
    assert '"42"' not in text
