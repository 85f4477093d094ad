"""What callers can choose of an answer, and how long others may keep it: items, fields, batches, caching, origins."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hotplate.serve.api.cors import Cors
from hotplate.stores.errors import StoreMisused
from tests.support.service import Answer, Service, a_list, publish_lists, running

ODD = ["a,b", 'quo"te', "\\", "é", "😀", "a b+c", "%2C", "\n"]
ORIGIN = "https://shop.example"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("api") / "store"
    lists = {"user:42": a_list(*map(str, range(20))), "user:odd": a_list(*ODD), "item:7": a_list("x", "y", "z")}
    asyncio.run(publish_lists(folder, lists))
    with running(folder, "--cors-origin", ORIGIN, "--cors-origin", "http://localhost:3000") as running_service:
        yield running_service


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["items"]]


def batch(service: Service, **fields: object) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    answer = service.request("POST", "/v1/recommendations", json.dumps(fields).encode())
    assert answer.status == 200, answer.body
    return answer.json


def test_excluded_items_are_left_out_and_n_is_filled_from_what_is_stored(service: Service) -> None:
    path = "/v1/recommendations/42"
    assert ids(service.get(f"{path}?exclude=0,3,nothing")) == ["1", "2", *map(str, range(4, 12))]
    assert ids(service.get(f"{path}?n=2&exclude={','.join(map(str, range(17)))}")) == ["17", "18"]
    assert ids(service.get(f"{path}?n=5&exclude={','.join(map(str, range(17)))}")) == ["17", "18", "19"]
    assert ids(service.get(f"{path}?exclude={','.join(map(str, range(20)))}")) == []
    assert ids(service.get("/v1/similar/7?exclude=x")) == ["y", "z"]
    assert ids(service.get("/v1/popular?exclude=p1,p3")) == ["p2"]
    assert ids(service.get("/v1/recommendations/nobody?exclude=p1")) == ["p2", "p3"]


@pytest.mark.parametrize("odd", ODD)
def test_any_id_can_be_excluded(service: Service, odd: str) -> None:
    rest = [one for one in ODD if one != odd]
    assert ids(service.get(f"/v1/recommendations/odd?exclude={quote(odd, safe='')}")) == rest
    (result,) = batch(service, users=["odd"], exclude=[odd])["results"]
    assert [item["id"] for item in result["items"]] == rest


def test_fields_says_what_of_an_item_is_returned(service: Service) -> None:
    path = "/v1/recommendations/42?n=1"
    assert service.get(f"{path}&fields=id").json["items"] == [{"id": "0"}]
    assert service.get(f"{path}&fields=id,score").json["items"] == [{"id": "0", "score": 1.0}]
    whole = [{"id": "0", "score": 1.0, "title": "Title 0"}]
    assert service.get(f"{path}&fields=id%2Cscore%2Ctitle").json["items"] == service.get(path).json["items"] == whole
    assert ids(service.get("/v1/recommendations/odd?fields=id")) == ODD
    assert batch(service, users=["42"], n=1, fields="id")["results"][0]["items"] == [{"id": "0"}]


def test_each_user_of_a_batch_has_a_status_and_those_named_twice_two_answers(service: Service) -> None:
    results = batch(service, users=["42", "nobody", "42", "nobody"], n=1)["results"]
    assert [(one["user"], one["status"], one["source"]) for one in results] == [
        ("42", "ok", "personal"),
        ("nobody", "unknown", "popular"),
    ] * 2
    assert results[:2] == results[2:]
    before = lookups(service)
    batch(service, users=["42"] * 100)
    assert lookups(service) == before + 1


def lookups(service: Service) -> float:
    text = service.admin("/metrics").body.decode()
    return float(text.partition('hotplate_lookups_total{outcome="hit",source="personal"} ')[2].partition("\n")[0])


def test_what_stands_in_for_a_list_is_kept_nowhere(service: Service) -> None:
    def cache_of(path: str) -> str:
        return service.get(path).headers["cache-control"]

    assert cache_of("/v1/recommendations/42") == "private, no-cache"
    assert cache_of("/v1/similar/7") == cache_of("/v1/popular") == "public, max-age=60"
    assert cache_of("/v1/recommendations/nobody") == cache_of("/v1/similar/unknown") == "no-store"
    assert service.request("POST", "/v1/recommendations", b'{"users": []}').headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/v1/recommendations/42", "/v1/recommendations/nobody", "/v1/similar/7?n=2"])
@pytest.mark.parametrize("media", ["application/json", "application/msgpack", "text/csv"])
def test_every_list_has_an_etag_of_its_form_and_head_gives_the_same_headers(
    service: Service, path: str, media: str
) -> None:
    got, head = service.get(path, Accept=media), service.request("HEAD", path, None, Accept=media)
    assert (head.status, head.body) == (200, b"")
    varying = {"date", "x-request-id", "server-timing"}
    assert got.headers.keys() == head.headers.keys()
    assert {k: v for k, v in got.headers.items() if k not in varying} == {
        k: v for k, v in head.headers.items() if k not in varying
    }
    again = service.get(path, Accept=media, If_None_Match=got.headers["etag"])
    assert (again.status, again.body, again.headers["vary"]) == (304, b"", "Accept, Origin")
    assert service.get(path, Accept="*/*", If_None_Match=got.headers["etag"]).status == (
        304 if media == "application/json" else 200
    )


def test_pages_of_listed_origins_may_read_answers_and_refusals(service: Service) -> None:
    for path, status in (("/v1/popular", 200), ("/v1/popular?n=0", 400), ("/nowhere", 404)):
        answer = service.get(path, Origin=ORIGIN)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers
        for other in ("https://evil.example", "null", "https://shop.example.evil.example"):
            answer = service.get(path, Origin=other)
            assert "access-control-allow-origin" not in answer.headers
            assert "Origin" in answer.headers["vary"]


def test_a_preflight_names_what_a_page_may_send(service: Service) -> None:
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-api-key"}
    answer = service.request("OPTIONS", "/v1/recommendations", None, Origin="http://localhost:3000", **asks)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert answer.headers["access-control-allow-methods"] == "POST"
    assert "X-API-Key" in answer.headers["access-control-allow-headers"]
    for refused in ({"Origin": "https://evil.example", **asks}, {"Origin": ORIGIN}, asks):
        assert service.request("OPTIONS", "/v1/recommendations", None, **refused).status == 405


@pytest.mark.parametrize("origin", ["*", "null", "shop.example", "https://shop.example/", "https://a@b", "http://a:x"])
def test_what_is_no_origin_is_refused_with_a_sentence(origin: str) -> None:
    with pytest.raises(StoreMisused, match=r"is not an origin; give scheme, host and port"):
        Cors([ORIGIN, origin])


def test_what_is_no_origin_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"'\*' is not an origin"):  # noqa: SIM117 -- the start fails
        with running(tmp_path / "store", "--cors-origin", "*"):
            pass
