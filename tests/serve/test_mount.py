"""The service below a prefix of somebody else's aiohttp application, and the example of it in docs/library.md."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, web
from yarl import URL

import hotplate
from tests.support.paths import ROOT
from tests.support.service import a_list, publish_lists

LISTS = {f"user:{user}": a_list("a", "b", "c") for user in ("42", "a/b", "%FF", "..", "😀", "?n=1")}
LISTS |= {"item:x/y": a_list("b", "c")}


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[str]:
    """Run an application on any free port of loopback; yield its URL."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def get(url: str, method: str = "GET", **options: Any) -> tuple[int, Any]:  # noqa: ANN401 -- JSON, or text
    async with ClientSession() as session, session.request(method, URL(url, encoded=True), **options) as response:
        is_json = "json" in response.content_type
        return response.status, await response.json(content_type=None) if is_json else await response.text()


async def test_every_route_of_the_service_answers_below_the_prefix(tmp_path: Path) -> None:
    release = await publish_lists(tmp_path, LISTS)
    app = web.Application()
    lists = hotplate.open(f"file://{tmp_path}")
    hotplate.mount(app, "/recs", lists)
    async with running(app) as url:
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


async def test_refusals_below_the_prefix_are_problems_and_outside_of_it_the_applications_own(tmp_path: Path) -> None:
    await publish_lists(tmp_path, LISTS)
    app = web.Application(client_max_size=8 << 20)
    hotplate.mount(app, "/a/recs", hotplate.open(f"file://{tmp_path}"))
    async with running(app) as url:
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


async def test_an_application_starts_without_a_release_and_answers_once_there_is_one(tmp_path: Path) -> None:
    app = web.Application()
    lists = hotplate.open(f"file://{tmp_path}")
    hotplate.mount(app, "/recs", lists)
    async with running(app) as url:
        status, body = await get(f"{url}/recs/v1/recommendations/42")
        assert (status, body["type"]) == (503, "urn:hotplate:problem:not-ready")
        assert (await get(f"{url}/recs/readyz"))[0] == 503
        with pytest.raises(hotplate.NotReady):
            await lists.personal("42")
        release = await publish_lists(tmp_path, LISTS)
        async with asyncio.timeout(20):
            while (await get(f"{url}/recs/readyz"))[0] != 200:
                await asyncio.sleep(0.02)
        assert (await lists.personal("42")).release == release
        with pytest.raises(RuntimeError, match="open already"):
            await lists.__aenter__()
    assert not lists.reader.following


async def test_the_example_answers_both_its_own_route_and_the_services(tmp_path: Path) -> None:
    await publish_lists(tmp_path, LISTS)
    example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)[1]
    assert "file:///var/lib/hotplate" in example
    names: dict[str, Any] = {"__name__": "example"}
    exec(example.replace("/var/lib/hotplate", str(tmp_path)), names)  # the test is that it runs as it stands
    async with running(names["application"]()) as url:
        assert await get(f"{url}/?user=42") == (200, {"for you": ["a", "b", "c"]})
        assert (await get(f"{url}/recs/v1/recommendations/42"))[1]["source"] == "personal"
