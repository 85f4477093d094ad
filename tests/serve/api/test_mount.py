"""The service below a prefix of somebody else's aiohttp application, and the example of it in docs/integration.md."""

import asyncio
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web
from yarl import URL

import hotplate
from tests.support.examples import examples
from tests.support.service import a_list, publish_lists, running_app

LISTS = {f"user:{user}": a_list("a", "b", "c") for user in ("42", "a/b", "%FF", "..", "😀", "?n=1")}
LISTS |= {"item:x/y": a_list("b", "c")}


async def get(url: str, method: str = "GET", **options: Any) -> tuple[int, Any]:  # noqa: ANN401 -- JSON, or text
    async with ClientSession() as session, session.request(method, URL(url, encoded=True), **options) as response:
        is_json = "json" in response.content_type
        return response.status, await response.json(content_type=None) if is_json else await response.text()


async def test_every_route_of_the_service_answers_below_the_prefix(tmp_path: Path) -> None:
    release = await publish_lists(tmp_path, LISTS)
    app = web.Application()
    lists = hotplate.open(f"file://{tmp_path}")
    hotplate.mount(app, "/recs", lists)
    async with running_app(app) as url:
        for user in ("42", "a/b", "%FF", "..", "😀", "?n=1"):
            status, body = await get(f"{url}/recs/v1/recommendations/{quote(user, safe='')}?n=2")
            assert (status, body["user"], body["source"], body["release"]) == (200, user, "personal", release)
            assert [item["id"] for item in body["items"]] == ["a", "b"]
        status, body = await get(f"{url}/recs/v1/recommendations", "POST", data=b'{"users": ["42", "nobody"]}')
        assert [one["source"] for one in body["results"]] == ["personal", "popular"]
        assert (await get(f"{url}/recs/v1/similar/x%2Fy"))[1]["source"] == "similar"
        assert (await get(f"{url}/recs/v1/popular"))[1]["source"] == "popular"
        assert await get(f"{url}/recs/livez") == (200, {"status": "alive"})
        assert (await get(f"{url}/recs/health/ready"))[1]["status"] == (await get(f"{url}/recs/readyz"))[1]["status"]
        assert (await get(f"{url}/recs/metrics"))[0] == 404
        counted = lists.prometheus_text().decode()
        assert 'hotplate_lookups_total{outcome="hit",source="personal"} 7.0' in counted
        assert f'hotplate_release_lookups_total{{outcome="miss",release="{release}",worker="0"}} 1.0' in counted


async def test_errors_under_the_prefix_are_problems_and_elsewhere_the_apps_own(tmp_path: Path) -> None:
    await publish_lists(tmp_path, LISTS)
    app = web.Application(client_max_size=8 << 20)
    hotplate.mount(app, "/a/recs", hotplate.open(f"file://{tmp_path}"))
    async with running_app(app) as url:
        for path, status, name in (
            ("/v1/recommendations/42?n=0", 400, "bad-parameter"),
            ("/v1/recommendations/%FF", 400, "bad-parameter"),
            ("/v1/recommendations/a/b", 404, "no-such-route"),
            ("/nothing", 404, "no-such-route"),
        ):
            assert (await get(f"{url}/a/recs{path}"))[0] == status
            assert (await get(f"{url}/a/recs{path}"))[1]["type"] == f"urn:hotplate:problem:{name}"
        assert (await get(f"{url}/a/recs/v1/popular", "DELETE"))[1]["detail"] == "/v1/popular takes GET, HEAD"
        too_large = await get(f"{url}/a/recs/v1/recommendations", "POST", data=BytesIO(b" " * ((1 << 20) + 1)))
        assert (too_large[0], too_large[1]["type"]) == (413, "urn:hotplate:problem:body-too-large")
        assert await get(f"{url}/elsewhere") == (404, "404: Not Found")


async def test_application_starts_without_a_release_and_answers_once_one_exists(tmp_path: Path) -> None:
    app = web.Application()
    lists = hotplate.open(f"file://{tmp_path}")
    hotplate.mount(app, "/recs", lists)
    async with running_app(app) as url:
        status, body = await get(f"{url}/recs/v1/recommendations/42")
        assert (status, body["type"]) == (503, "urn:hotplate:problem:not-ready")
        assert (await get(f"{url}/recs/readyz"))[0] == 503
        with pytest.raises(hotplate.NotReady):
            await lists.personal("42")
        release = await publish_lists(tmp_path, LISTS)
        async with asyncio.timeout(60):
            while (await get(f"{url}/recs/readyz"))[0] != 200:
                await asyncio.sleep(0.02)
        assert (await lists.personal("42")).release == release
        with pytest.raises(RuntimeError, match="already open"):
            await lists.__aenter__()
    assert not lists.reader.following


async def test_a_deny_list_and_web_pages_of_other_origins_are_as_in_the_service(tmp_path: Path) -> None:
    await publish_lists(tmp_path / "store", LISTS)
    denied, shop, app = tmp_path / "denied.txt", "https://shop.example", web.Application()
    denied.write_text("item:a\n")
    hotplate.mount(app, "/recs", hotplate.open(f"file://{tmp_path}/store", deny_list=denied), cors_origins=[shop])
    async with running_app(app) as url, ClientSession() as session:
        path = f"{url}/recs/v1/recommendations/42"
        assert [item["id"] for item in (await get(f"{path}?n=2"))[1]["items"]] == ["b", "c"]
        denied.write_text("user:42\n")
        async with asyncio.timeout(60):
            while (await get(path))[1]["source"] == "personal":
                await asyncio.sleep(0.02)
        denied.write_text("broken\n")
        async with asyncio.timeout(60):
            while (await get(f"{url}/recs/readyz"))[1]["status"] != "degraded":
                await asyncio.sleep(0.02)
        asks = {"Origin": shop, "Access-Control-Request-Method": "GET"}
        async with session.options(path, headers=asks) as preflight, session.get(path, headers=asks) as answer:
            assert (preflight.status, preflight.headers["Access-Control-Allow-Methods"]) == (204, "GET")
            assert answer.headers["Access-Control-Allow-Origin"] == shop
    with pytest.raises(hotplate.StoreMisused, match="is not an origin"):
        hotplate.mount(web.Application(), "/recs", hotplate.open(f"file://{tmp_path}"), cors_origins=["shop"])


async def test_the_example_answers_both_its_own_route_and_the_services(tmp_path: Path) -> None:
    await publish_lists(tmp_path, LISTS)
    (example,) = examples("docs/integration.md", "aiohttp")
    assert "file:///var/lib/hotplate" in example
    names: dict[str, Any] = {"__name__": "example"}
    exec(example.replace("/var/lib/hotplate", str(tmp_path)), names)  # the test is that it runs as it stands
    async with running_app(names["application"]()) as url:
        assert await get(f"{url}/?user=42") == (200, {"for you": ["a", "b", "c"]})
        assert (await get(f"{url}/recs/v1/recommendations/42"))[1]["source"] == "personal"
