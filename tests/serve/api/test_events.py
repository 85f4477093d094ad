"""`POST /v1/events` of a real service: accepted and refused events, counts, and durability."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from tests.support.browser import opened
from tests.support.event_log import body, written
from tests.support.http_server import http_server
from tests.support.limited_service import samples
from tests.support.service import Answer, Service, a_list, published, running, until

# Sends a body with the right key.
Report = Callable[[bytes], Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def release(folder: Path) -> str:
    return published(folder / "store", {"user:42": a_list("7", "8")})


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    """Keys by their scope; callers on loopback are operators."""
    return {scope: create(folder / "keys.json", scope, [scope]).key for scope in ("read", "events")}


@pytest.fixture(scope="module")
def service(folder: Path, release: str, keys: dict[str, str]) -> Iterator[Service]:
    assert release
    assert keys
    options = ("--keys", str(folder / "keys.json"), "--events", str(folder / "log"))
    with running(folder / "store", *options) as running_service:
        yield running_service


@pytest.fixture
def report(service: Service, keys: dict[str, str]) -> Report:
    return lambda sent: service.post("/v1/events", sent, X_API_Key=keys["events"])


@pytest.fixture
def open_service(folder: Path, tmp_path: Path, release: str) -> Iterator[Service]:
    """A service on loopback without keys, as on a developer's machine."""
    assert release
    with running(folder / "store", "--events", str(tmp_path / "log")) as running_service:
        yield running_service


def counted(service: Service, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in samples(service, name)
        if sample.value
    }


def test_event_of_the_future_happened_now(open_service: Service, tmp_path: Path) -> None:
    event = {"type": "buy", "user": "42", "items": ["7"], "time": 9e10}
    sent = {"events": [event]}
    assert open_service.post("/v1/events", sent, Content_Type="application/json").status == 200
    (kept,) = written(tmp_path / "log")
    assert abs(kept["time"] - time.time()) < 60


def test_accepted_events_are_durable_and_counted_by_role_and_position(
    open_service: Service, tmp_path: Path, release: str
) -> None:
    shown = [str(item) for item in range(12)]
    events: list[dict[str, object]] = [
        {"type": "impression", "user": "42", "items": shown, "release": release, "request_id": "r1"},
        {"type": "click", "user": "42", "items": ["1"], "position": 2.0, "release": release, "time": 1_790_000_000.5},
        {"type": "click", "user": "é", "items": ["8"], "release": "gone", "id": "mine"},
        {"type": "buy", "user": "42", "items": ["7", "8"]},
    ]
    sent = {"events": events}
    answer = open_service.post("/v1/events", sent, Content_Type="application/json")
    assert (answer.status, answer.json, answer.headers["cache-control"]) == (200, {"durable": 4}, "no-store")
    first, second, third, fourth = written(tmp_path / "log")
    assert (first["items"], first["role"], first["request_id"], first["position"]) == (shown, "live", "r1", 1)
    assert (second["position"], second["time"], second["release"]) == (2, 1_790_000_000.5, release)
    assert (third["id"], third["role"], third["user"], "position" in third) == ("mine", "other", "é", False)
    assert (fourth["type"], fourth["items"]) == ("buy", ["7", "8"])
    assert len({event["id"] for event in (first, second, third, fourth)}) == 4
    assert counted(open_service, "hotplate_events_total", "type", "outcome") == {
        ("impression", "durable"): 1, ("click", "durable"): 2, ("custom", "durable"): 1,
    }  # fmt: skip
    impressions = {("live", str(place)): 1 for place in range(1, 11)} | {("live", "more"): 2}
    assert counted(open_service, "hotplate_impressions_total", "role", "position") == impressions
    assert counted(open_service, "hotplate_clicks_total", "role", "position") == {
        ("live", "2"): 1,
        ("other", "unknown"): 1,
    }


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"{", "the body is not JSON"),
        (b'{"x":1,"events":' + b"[" * 5_000, ""),
        (b'{"events": []}', "events cannot be used"),
        (body("1", kind="two words"), "events[0].type cannot be used"),
        (body("1", position=1.5), "events[0].position cannot be used"),
        (body("1", secret="s3cret"), "contains unknown field"),
        (body("1", **{" - at `$" + "x" * 5000: "1"}), "x"),
        (body("é" * 200), "an id of events[0] cannot be used"),
        (body(*map(str, range(1001))), "length <= 1000"),
    ],
)
def test_request_with_one_invalid_event_is_refused_entirely(
    report: Report, folder: Path, sent: bytes, said: str
) -> None:
    before = len(written(folder / "log"))
    answer = report(sent)
    assert answer.problem == (400, "bad-parameter")
    assert said in answer.json["detail"]
    assert len(answer.json["detail"]) <= 200
    assert "s3cret" not in answer.json["detail"]
    assert len(written(folder / "log")) == before


def test_events_require_the_events_scope(service: Service, keys: dict[str, str]) -> None:
    assert service.post("/v1/events", body("1")).status == 401
    assert service.post("/v1/events", body("1"), X_API_Key=keys["read"]).status == 403
    assert service.post("/v1/events", body("1"), X_API_Key=keys["events"]).status == 200
    assert service.get("/v1/popular", X_API_Key=keys["events"]).status == 403
    assert service.get("/v1/events", X_API_Key=keys["events"]).headers["allow"] == "POST"
    assert service.post("/v1/events", b" " * ((1 << 20) + 1), X_API_Key=keys["events"]).status == 413


def test_a_page_of_another_site_cannot_send_events_to_a_service_without_keys(
    open_service: Service, tmp_path: Path
) -> None:
    for headers in (
        {"Content_Type": "text/plain", "Origin": "https://evil.example"},
        {"Content_Type": "text/plain;charset=application/json"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {},
    ):
        assert open_service.post("/v1/events", body("1"), **headers).status == 415
    asked = open_service.request(
        "OPTIONS", "/v1/events", Origin="https://evil.example", Access_Control_Request_Method="POST"
    )
    assert asked.status == 405  # the browser must not send JSON
    rebound = {"Content_Type": "application/json", "Host": "evil.example:8080", "Origin": "http://evil.example:8080"}
    for key in ({}, {"X_API_Key": "any"}):  # a service without keys checks none
        assert open_service.post("/v1/events", body("1"), **rebound, **key).status == 403
    assert written(tmp_path / "log") == []
    for origin in ({}, {"Origin": "http://localhost:3000"}):
        sent = {"Content_Type": "application/json", **origin}
        assert open_service.post("/v1/events", body("1"), **sent).status == 200


@pytest.fixture
def shop() -> Iterator[str]:
    """The origin of an empty page."""
    with http_server(lambda *_: (200, b"<!doctype html><title>Shop</title>"), "text/html") as origin:
        yield origin


async def test_beacon_of_a_page_in_chromium_is_durable(
    folder: Path, release: str, shop: str, browser: str, tmp_path: Path
) -> None:
    event = {"type": "click", "user": "42", "items": ["7"], "position": 1, "release": release, "id": "beacon"}
    sent = json.dumps(json.dumps({"events": [event]}))
    options = ("--events", str(tmp_path / "log"), "--cors-origin", shop)
    with running(folder / "store", *options) as service:
        async with opened(browser, shop) as page:
            await page.until(f"location.origin === '{shop}' && document.title === 'Shop'")
            blob = f'new Blob([{sent}], {{type: "application/json"}})'
            url = f"http://127.0.0.1:{service.port}/v1/events"
            assert await page.evaluate(f'navigator.sendBeacon("{url}", {blob})')
            await asyncio.to_thread(until, lambda: counted(service, "hotplate_events_total", "type", "outcome"))
        assert counted(service, "hotplate_events_total", "type", "outcome") == {("click", "durable"): 1.0}
    assert [event["id"] for event in written(tmp_path / "log")] == ["beacon"]
