"""The two forms of a batch say the same."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hotplate.serve.api.routes import JSON, MSGPACK
from tests.support.service import Answer, Service, a_list, ids, published, running

ODD = ["a,b", 'quo"te', "\\", "é", "😀", "two\r\nlines", "\n", "'", "=1+1", "\x00"]
MANY = [str(number) for number in range(2000)]
LISTS = {"user:42": a_list(*ODD), "user:bare": b'{"id":"x","score":0.1}', "item:7": a_list("x")}
LISTS |= {f"user:{user}": a_list(*(f"{user}-{rank}" for rank in range(10))) for user in MANY[100:]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("formats") / "store"
    published(folder, LISTS)
    with running(folder) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def service_of_all_routes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("routes") / "store"
    published(folder, LISTS)
    with running(folder, "--events", str(folder.parent / "events"), "--fold-in") as running_service:
        yield running_service


def post(service: Service, media: str, users: list[str]) -> Answer:
    body = {"users": users, "n": 10}
    answer = service.post("/v1/recommendations", body, Accept=media)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].partition(";")[0] == media
    return answer


def decoded(answer: Answer) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    return answer.json if answer.headers["content-type"] == JSON else msgspec.msgpack.decode(answer.body)


def test_json_and_msgpack_batches_are_equal_and_large_ones_complete(service: Service) -> None:
    for users in (["42", "nobody", "bare", *ODD, "42"], [], MANY):
        plain, packed = (decoded(post(service, media, users)) for media in (JSON, MSGPACK))
        assert plain == packed
        assert [result["user"] for result in plain["results"]] == users
    assert [result["items"][0]["id"] for result in plain["results"][100:]] == [f"{user}-0" for user in MANY[100:]]
    assert ids(decoded(post(service, MSGPACK, ["42"]))["results"][0]) == ODD


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("application/json, Application/Msgpack", MSGPACK),
        ("application/msgpack;q=0.5", MSGPACK),
        ("application/msgpack;q=0", JSON),
        ("application/msgpack ; q=0.000, */*", JSON),
        ("application/msgpack-other", JSON),
        ("text/html", JSON),
        ("application/json;q=0.5, text/csv", JSON),
        ("x" * 3_000, JSON),
    ],
    ids=lambda value: value[:40],
)
def test_msgpack_is_sent_to_those_that_accept_it(service: Service, accept: str, media: str) -> None:
    answer = service.post("/v1/recommendations", b'{"users": ["42"]}', Accept=accept)
    assert (answer.status, answer.headers["content-type"]) == (200, media)
    assert service.get("/v1/popular", Accept=accept).json["source"] == "popular"


def packed(service: Service, body: bytes, **headers: str) -> Answer:
    return service.post("/v1/recommendations", body, Content_Type=MSGPACK, **headers)


def test_json_and_msgpack_bodies_get_equal_answers(service: Service) -> None:
    for fields in (
        {"users": ["42", *ODD, "nobody"]},
        {"users": MANY, "n": 10},
        {"users": ["42"], "n": 3.0, "fields": "id"},
    ):
        plain = service.post("/v1/recommendations", fields)
        for accept in (JSON, MSGPACK):
            answer = packed(service, msgspec.msgpack.encode(fields), Accept=accept)
            assert answer.status == 200
            assert decoded(answer) == plain.json


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not msgpack"),
        (b"{}", "the body is not msgpack"),
        (b"\x91" * 100_000, "the body is not msgpack"),
        (b"\x81\xa5users\x91\xa1\xff", "the body is not msgpack"),
        (b"\x81\x91\x01\x01", "cannot be used"),
        (b"\x81\xa5users\xd4\x01\x01", "users cannot be used"),
        (msgspec.msgpack.encode({"users": ["1"], "m": 1}), "unknown field `m`"),
        (msgspec.msgpack.encode({"users": [1]}), "users[0] cannot be used"),
        (msgspec.msgpack.encode({"users": ["1"], "n": 1.5}), "n cannot be used"),
        (msgspec.msgpack.encode({"users": [""]}), "users[0] cannot be used"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_msgpack_body_is_refused_with_the_position(service: Service, body: bytes, reason: str) -> None:
    answer = packed(service, body)
    assert answer.status == 400
    assert reason in answer.json["detail"]
    assert "Traceback" not in service.log.read_text()


def test_client_that_leaves_a_large_answer_disturbs_no_other(service: Service) -> None:
    body = json.dumps({"users": MANY, "n": 10}).encode()
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.request("POST", "/v1/recommendations", body)
        assert connection.getresponse().read(100)
        connection.close()
    assert service.get("/v1/popular").status == 200
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize("path", ["/v1/recommendations/fold-in", "/v1/events", "/score"])
def test_routes_without_msgpack_refuse_it_with_415(service_of_all_routes: Service, path: str) -> None:
    body = msgspec.msgpack.encode({"items": ["42"]})
    answer = service_of_all_routes.post(path, body, Content_Type=MSGPACK)
    assert answer.status == 415
    assert "not-json" in answer.body.decode()
