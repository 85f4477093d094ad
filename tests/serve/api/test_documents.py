"""The OpenAPI document and its page: what a developer opens first."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

import hotplate
from hotplate.serve.api.openapi import document
from tests.support.browser import opened
from tests.support.factors import factor_rows
from tests.support.service import Service, a_list, publish_lists, running, running_app

FILES = {
    "/docs/swagger-ui-bundle.js": "text/javascript",
    "/docs/swagger-ui.css": "text/css",
    "/docs/favicon-32x32.png": "image/png",
    "/docs/start.js": "text/javascript",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "store"
    lists = {"user:42": a_list(*map(str, range(20))), "item:42": a_list("7")}
    asyncio.run(publish_lists(folder, lists | factor_rows("42", "43", "44")))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running(folder, "--fold-in", "--events", str(folder.parent / "events")) as running_service:
        yield running_service


async def test_the_page_sends_a_request_that_works_and_requests_nothing_elsewhere(
    service: Service, tmp_path: Path
) -> None:
    block = "document.getElementById('operations-Lists-get_v1_recommendations_user')"
    async with opened(f"{service.url}/docs", tmp_path) as page:
        await page.until(f"{block} !== null")
        await page.evaluate(f"{block}.querySelector('.opblock-summary-control').click()")
        await page.until(f"{block}.querySelector('.try-out__btn') !== null")
        await page.evaluate(f"{block}.querySelector('.try-out__btn').click()")
        await page.until(f"{block}.querySelector('.execute') !== null")
        await page.evaluate(f"{block}.querySelector('.execute').click()")
        shown = await page.until(f"{block}.querySelector('.live-responses-table')?.innerText")
        assert '"source": "personal"' in shown
        assert all(address.startswith((f"{service.url}/", "data:")) for address in page.requested)
        assert any(address.startswith(f"{service.url}/v1/recommendations/42?") for address in page.requested)
        assert page.complaints == []
        await page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hurt = 1\">')")
        while not page.complaints:
            await asyncio.sleep(0.05)
        assert await page.evaluate("window.hurt === undefined")


def test_every_route_but_those_for_operators_is_described() -> None:
    assert document(takes_key=False, takes_events=True)["paths"].keys() == {
        "/v1/events", "/v1/recommendations/{user}", "/v1/recommendations", "/v1/recommendations/fold-in",
        "/v1/similar/{item}", "/v1/popular",
        "/score", "/swagger.json", "/", "/livez", "/readyz", "/openapi.json", "/docs",
    }  # fmt: skip


def test_keys_are_asked_for_where_they_are_needed_and_probes_never_take_one() -> None:
    keyed, anonymous = document(takes_key=True, takes_events=True), document(takes_key=False)
    assert [*map(list, keyed["security"])] == [["Key"], ["Bearer"]]
    assert anonymous["security"] == [{}, *keyed["security"]]
    for path, methods in keyed["paths"].items():
        for operation in methods.values():
            assert ("security" not in operation) == path.startswith(("/v1/", "/score"))


def test_every_status_is_described_and_a_scoring_job_is_never_told_429() -> None:
    described = document(takes_key=True, takes_events=True)
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert operation["responses"].keys() >= {"200"}
            assert ("429" in operation["responses"]) == path.startswith("/v1/")
            for response in operation["responses"].values():
                if "$ref" in response:
                    assert response["$ref"].rpartition("/")[2] in described["components"]["responses"]


def test_the_examples_work(service: Service) -> None:
    described = service.get("/openapi.json").json
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parameters = {one["name"]: one.get("example") for one in operation.get("parameters", [])}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            sent = None if body is None else json.dumps(body).encode()
            headers = {} if sent is None else {"Content_Type": "application/json"}
            answer = service.request(method.upper(), path.format(**parameters), sent, **headers)
            assert answer.status == 200, (path, answer.body)


def test_the_document_is_asked_for_again_and_saved_by_its_etag(service: Service) -> None:
    for path, media in (("/openapi.json", "application/json"), ("/docs", "text/html; charset=utf-8")):
        answer = service.get(path)
        assert (answer.status, answer.headers["content-type"]) == (200, media)
        assert answer.headers["cache-control"] == "no-cache"
        again = service.get(path, If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
        assert service.get(f"{path}?n=1").status == 400


@pytest.mark.parametrize("path", FILES)
def test_the_files_of_the_page_are_kept_for_a_week(service: Service, path: str) -> None:
    answer = service.get(path)
    assert (answer.status, answer.headers["content-type"]) == (200, FILES[path])
    assert answer.headers["cache-control"] == "public, max-age=604800"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(answer.body) == int(service.request("HEAD", path).headers["content-length"]) > 0
    assert service.get(path, If_None_Match=f"W/{answer.headers['etag']}").status == 304


@pytest.mark.parametrize("path", ["/docs/", "/docs/index.html", "/docs/..%2Fswagger-ui.css", "/docs/%2Fetc%2Fpasswd"])
def test_no_other_file_is_served(service: Service, path: str) -> None:
    assert service.get(path).status == 404


async def test_inside_another_application_the_document_says_so(folder: Path) -> None:
    app = web.Application()
    hotplate.mount(app, "/recs", hotplate.open(f"file://{folder}"))
    async with running_app(app) as origin, ClientSession() as session:
        async with session.get(f"{origin}/recs/openapi.json") as response:
            assert (await response.json())["servers"] == [{"url": "/recs"}]
        async with session.get(f"{origin}/recs/docs/start.js") as response:
            assert response.status == 200
