"""The console's routes: what the page reads, who may read it, and that the streams end; what a user did before."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientResponse, ClientSession

from hotplate.serve.access.keys import create
from hotplate.serve.api.openapi import PAGE_POLICY
from hotplate.serve.events.writer import WrittenEvent
from hotplate.serve.metrics import CLICK, IMPRESSION, LIVE
from hotplate.serve.processes.console import EVENTS, FILES, STREAMS, compare, history_of, shown_settings
from hotplate.serve.settings import ServiceSettings
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.event_log import LogSegment, line_of
from tests.support.service import Service, a_list, publish_lists, running, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console") / "store"


@pytest.fixture(scope="module")
def releases(folder: Path) -> list[str]:
    """Two releases, the second of which is live."""
    lists = [{"user:42": a_list(mark, "b"), "item:b": a_list("c")} for mark in "ab"]
    return [asyncio.run(publish_lists(folder, each)) for each in lists]


@pytest.fixture(scope="module")
def service(folder: Path, releases: list[str]) -> Iterator[Service]:
    assert len(releases) == 2
    keys = folder.parent / "keys.json"
    create(keys, "web", ["read"])
    with running(folder, "--admin-store", f"file://{folder}", "--keys", str(keys), "--anonymous") as service:
        yield service


@asynccontextmanager
async def stream(service: Service) -> AsyncIterator[ClientResponse]:
    async with ClientSession() as session, session.get(f"{service.admin_url}/console/stream") as response:
        yield response


async def event(response: ClientResponse, wanted: str) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    """Return the data of the next event of a name."""
    while True:
        name = (await response.content.readuntil(b"\n")).decode().strip()
        data = (await response.content.readuntil(b"\n\n")).decode().strip()
        if name == f"event: {wanted}":
            return json.loads(data.removeprefix("data: "))


def test_the_page_and_its_files_are_served_under_a_strict_policy(service: Service) -> None:
    page = service.admin("/console")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for each in FILES.iterdir():
        answer = service.admin(f"/console/{each.name}")
        assert (answer.status, answer.headers["content-security-policy"]) == (200, PAGE_POLICY)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert service.admin(f"/console/{each.name}", If_None_Match=answer.headers["etag"]).status == 304
    assert service.admin("/console/console.py").status == 404
    assert service.admin("/console", Host="evil.example").status == 421
    assert service.admin("/console?x=1").status == 400


def test_the_root_leads_to_the_page(service: Service) -> None:
    answer = service.admin("/")
    assert (answer.status, answer.headers["location"]) == (302, "/console")


def test_a_release_is_described_by_its_manifest(service: Service, folder: Path) -> None:
    verdict = {"measured": 0.25, "bound": 0.3, "at_most": False, "note": ""}
    verdicts = [{"gate": "ndcg", "passed": False, **verdict}, {"gate": "popular_share", "passed": True, **verdict}]
    gates = {"forced": True, "verdicts": verdicts}
    about = {
        "engine": "als",
        "trained_at": "2026-11-20T06:42:00+00:00",
        "metrics": {"k": 10, "model": {"ndcg": 0.25}},
        "gates": gates,
    }
    release = asyncio.run(publish_lists(folder, {"user:1": a_list("x")}, live=False, about=about))
    found = service.admin(f"/console/release?tier=file&release={release}").json
    assert found == service.admin(f"/console/release?tier=file&release={release}").json
    assert (found["engine"], found["rows"], found["k"], found["ndcg"]) == ("als", 2, 10, 0.25)
    assert (found["trained_at"], found["gates"], found["forced"]) == (about["trained_at"], verdicts, True)
    assert service.admin(f"/console/release?tier=redis&release={release}").status == 400
    assert service.admin("/console/release?tier=file&release=none").status == 404


def test_nothing_of_the_page_makes_markup_out_of_data() -> None:
    for each in FILES.iterdir():
        text = each.read_text()
        for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style="):
            assert banned not in text, each.name


async def test_the_figures_follow_what_is_requested(service: Service, releases: list[str]) -> None:
    async with stream(service) as response:
        assert response.headers["content-type"] == "text/event-stream"
        history = await event(response, "history")
        assert {name: (each["seconds"], each["every_s"]) for name, each in history.items()} == {
            "short": (300, 1),
            "long": (3600, 10),
        }
        lines = await event(response, "log")
        assert any(f"{releases[1]} is live" in line["message"] for line in lines)
        await event(response, "figures")
        for user in ("42", "nobody"):
            assert (await asyncio.to_thread(service.get, f"/v1/recommendations/{user}")).status == 200
        async with asyncio.timeout(60):
            while not (figures := await event(response, "figures"))["sources"]["unknown"]:
                pass
        (worker,) = figures["workers"]
        assert (figures["status"], worker["status"]) == ("ready", "ready")
        assert {route["route"] for route in figures["routes"]} == {"/v1/recommendations/{user}"}
        assert figures["tiers"][0]["releases"] == [releases[1]]


async def test_streams_are_bounded_and_free_again_when_their_readers_are_gone(service: Service) -> None:
    async with ClientSession() as session:

        async def opened() -> list[ClientResponse]:
            """Open streams until one is refused."""
            found = list[ClientResponse]()
            while (last := await session.get(f"{service.admin_url}/console/stream")).status == 200:
                found.append(last)
            assert (last.status, (await last.json())["type"]) == (503, "urn:hotplate:problem:too-many-streams")
            return found

        for _ in range(2):
            async with asyncio.timeout(60):
                while len(streams := await opened()) < STREAMS:  # others of before end within a second
                    for each in streams:
                        each.close()
                    await asyncio.sleep(0.2)
            assert len(streams) == STREAMS
            for each in streams:
                each.close()


def test_a_list_is_shown_with_where_it_came_from(service: Service, releases: list[str]) -> None:
    found = service.admin("/console/user?id=42").json
    assert [item["id"] for item in found["items"]] == ["b", "b"]
    assert (found["source"], found["status"], found["tier"]) == ("personal", "ok", "file")
    assert found["release"] == releases[1]
    unknown = service.admin("/console/user?id=nobody&n=2").json
    assert (unknown["source"], unknown["status"], len(unknown["items"])) == ("popular", "unknown", 2)
    assert [item["id"] for item in service.admin("/console/item?id=b").json["items"]] == ["c"]
    for path in ("/console/user", "/console/user?id=", "/console/user?id=42&n=0", "/console/user?who=42"):
        assert service.admin(path).status == 400


def test_what_a_release_would_change_is_compared(service: Service, releases: list[str]) -> None:
    found = service.admin(f"/console/diff?release={releases[0]}").json
    assert (found["live"], found["difference"]["complete"]) == (releases[1], True)
    assert (found["difference"]["compared"], found["difference"]["unchanged"]) == (1, 0)
    assert service.admin(f"/console/diff?release={releases[1]}").json["difference"] is None
    assert service.admin("/console/diff?release=20990101T000000Z-0000").status == 404


async def test_a_comparison_ends_when_its_time_is_over(tmp_path: Path) -> None:
    lists = {f"user:{user:05}": a_list("a") for user in range(3000)}
    first, _ = [await publish_lists(tmp_path / "store", lists) for _ in range(2)]
    found: Any = await compare(f"file://{tmp_path / 'store'}", ReleaseId(first), limit_s=0)
    difference = found["difference"]
    assert not difference["complete"]
    assert 0 < difference["compared"] == difference["unchanged"] < 3000
    assert (difference["only_live"], difference["only_release"]) == (0, 0)


def test_who_may_change_which_tier_is_known(service: Service, releases: list[str]) -> None:
    (tier,) = service.admin("/v1/releases").json["tiers"]
    assert (tier["changeable"], tier["live"], tier["previous"]) == (True, releases[1], releases[0])


def test_keys_are_named_with_their_last_use_and_never_shown(service: Service, folder: Path) -> None:
    key = create(folder.parent / "keys.json", "batch", ["read"]).key
    (web, batch) = service.admin("/console/keys").json["clients"]
    assert (web["name"], web["scopes"], web["last_used_at"], batch["last_used_at"]) == ("web", ["read"], None, None)

    def is_used() -> object:
        service.get("/v1/popular", X_API_Key=key)  # the workers take the new key up first
        return service.admin("/console/keys").json["clients"][1]["last_used_at"]

    until(is_used)
    answer = service.admin("/console/keys")
    assert abs(answer.json["clients"][1]["last_used_at"] - time.time()) < 60
    digests = json.loads((folder.parent / "keys.json").read_bytes())["clients"]
    assert key not in answer.body.decode()
    assert all(client["primary"]["sha256"] not in answer.body.decode() for client in digests)


def test_the_service_says_how_it_was_started_without_its_secrets(service: Service) -> None:
    about = service.admin("/console/service").json
    assert (about["url"], about["changes"], about["reads_take_a_key"]) == (service.url, True, False)
    assert about["settings"]["workers"] == 1
    assert about["limits"]["connections"] == 10_000
    shown = shown_settings(
        ServiceSettings(
            ("redis://user:s3cret@cache:6379/0?ca=s3cret", "file:///x"),
            admin_store="cosmos://account/lists?key=s3cret",
            oidc_issuer="https://user:s3cret@login.example/",
        )
    )
    assert "s3cret" not in json.dumps(shown)
    assert shown["stores"] == ["redis://cache:6379/0", "file:///x"]


async def test_a_stream_has_the_lines_of_before_its_process_began_and_ends_when_the_service_stops(
    folder: Path, releases: list[str]
) -> None:
    with running(folder) as service:
        workers = service.workers()
        (admin,) = set(service.processes()) - set(workers)
        os.kill(admin, signal.SIGKILL)
        async with stream(service) as response:
            messages = [line["message"] for line in await event(response, "log")]
            assert any(f"{releases[1]} is live" in message for message in messages)
            assert any("admin process ended with -9" in message for message in messages)
            assert service.workers() == workers
            service.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await response.read()  # which would raise if it were cut
        assert service.process.wait(timeout=60) == 0


def an_event(user: str, item: str, at: float, kind: str = CLICK) -> bytes:
    event = WrittenEvent(id=f"{user}-{at}", time=at, type=kind, user=user, items=(item,), role=LIVE)
    return line_of(msgspec.json.encode(event))


def written(folder: Path, events: Sequence[bytes]) -> LogSegment:
    segment = LogSegment(folder)
    segment.append(events)
    return segment


def test_the_latest_events_of_a_user_are_found_and_what_was_shown_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, [an_event("42", "a", 1), an_event("7", "b", 2), an_event("42", "c", 3, IMPRESSION)]).close()
    still_open = written(tmp_path, [an_event("42", "d", 4, "buy"), an_event('"42', "e", 5)])
    found = history_of("42", tmp_path)
    assert [(event.type, event.items, event.at) for event in found.events] == [("buy", ("d",), 4), (CLICK, ("a",), 1)]
    assert found.complete
    assert [event.items for event in history_of('"42', tmp_path).events] == [("e",)]
    still_open.close()


def test_no_more_is_read_than_is_shown(tmp_path: Path) -> None:
    now = time.time()
    written(tmp_path, [an_event("42", str(number), now + number) for number in range(2 * EVENTS)]).close()
    found = history_of("42", tmp_path)
    assert [event.items[0] for event in found.events] == [str(number) for number in range(EVENTS, 2 * EVENTS)][::-1]
