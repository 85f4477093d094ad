"""What a developer opens first: the OpenAPI document and its page."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.api.openapi import document
from hotplate.stores.factors import Description, ItemEntry, description_row, pieces
from tests.support.browser import opened
from tests.support.npm import installed
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import Service, a_list, published, running
from tests.support.soak import SEED, scaled
from tests.support.waiting import until_true

AXE = "4.14.1"
# What axe finds in the elements that Swagger UI makes.
OF_SWAGGER_UI = {"nested-interactive", "select-name", "landmark-unique"}


def factor_rows(*ids: str) -> dict[str, bytes]:
    """Return the rows of factors, two of each item, as `publish_lists` takes rows."""
    items = ((ItemEntry(item, f"Title {item}"), struct.pack("<2f", 1.0, number)) for number, item in enumerate(ids))
    rows = list(pieces(items))
    description = Description("als", len(ids), 2, len(rows), regularization=1.0, alpha=2.0, weight=1.0)
    return dict([*rows, description_row(description)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents") / "store"
    lists = {f"user:{user}": a_list(*map(str, range(20))) for user in ("42", "0", "a/b", "é")}
    lists |= {"item:42": a_list("7", "8"), "popular:France": a_list("vin", "pain")}
    published(folder, lists | factor_rows(*map(str, range(50))))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running(folder, "--fold-in", "--events", str(folder.parent / "events")) as running_service:
        yield running_service


async def test_docs_page_sends_a_working_request_and_no_other_host_is_asked(service: Service, browser: str) -> None:
    block = "document.getElementById('operations-Lists-get_v1_recommendations_user')"
    async with opened(browser, f"{service.url}/docs") as page:
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
        await until_true(lambda: page.complaints)
        assert await page.evaluate("window.hurt === undefined")


@pytest.mark.soak
async def test_docs_page_is_accessible(service: Service, browser: str, pytestconfig: pytest.Config) -> None:
    axe = installed(pytestconfig, f"axe-core@{AXE}") / "node_modules/axe-core/axe.min.js"
    async with opened(browser, f"{service.url}/docs") as page:
        await page.until("document.querySelectorAll('.opblock').length >= 5")
        await page.evaluate("document.querySelectorAll('.opblock-summary-control').forEach((one) => one.click())")
        await page.until("document.querySelectorAll('.opblock-body').length >= 5")
        await page.evaluate(axe.read_text() + "; 0")
        violations = json.loads(await page.evaluate("axe.run().then((found) => JSON.stringify(found.violations))"))
    found = {violation["id"]: [node["html"][:200] for node in violation["nodes"]] for violation in violations}
    assert {kind: nodes for kind, nodes in found.items() if kind not in OF_SWAGGER_UI} == {}


def test_every_public_route_is_described_with_its_key_requirement() -> None:
    keyed = document(takes_key=True, takes_events=True)
    anonymous = document(takes_key=False)
    assert keyed["paths"].keys() == {
        "/v1/events", "/v1/recommendations/{user}", "/v1/recommendations", "/v1/recommendations/fold-in",
        "/v1/similar/{item}", "/v1/popular",
        "/score", "/swagger.json", "/", "/livez", "/readyz", "/openapi.json", "/docs",
    }  # fmt: skip
    assert anonymous["security"] == [{}, *keyed["security"]]
    for path, methods in keyed["paths"].items():
        for operation in methods.values():
            assert ("security" not in operation) == path.startswith(("/v1/", "/score"))


def test_the_examples_work(service: Service) -> None:
    described = service.get("/openapi.json").json
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parameters = {parameter["name"]: parameter.get("example") for parameter in operation.get("parameters", [])}
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            sent = None if body is None else json.dumps(body).encode()
            headers = {} if sent is None else {"Content_Type": "application/json"}
            answer = service.request(method.upper(), path.format(**parameters), sent, **headers)
            assert answer.status == 200, (path, answer.body)


def test_document_is_revalidated_by_its_etag(service: Service) -> None:
    for path, media in (("/openapi.json", "application/json"), ("/docs", "text/html; charset=utf-8")):
        answer = service.get(path)
        assert (answer.status, answer.headers["content-type"]) == (200, media)
        assert answer.headers["cache-control"] == "no-cache"
        again = service.get(path, If_None_Match=answer.headers["etag"])
        assert (again.status, again.body) == (304, b"")
        assert service.get(f"{path}?n=1").status == 400


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_schemathesis_finds_nothing(folder: Path, tmp_path: Path) -> None:
    """Every route, with sense and with nonsense: each answer is as the document says."""
    key = create(tmp_path / "keys.json", "explorer", ["read", "events"]).key
    options = ("--fold-in", "--keys", str(tmp_path / "keys.json"), "--events", str(tmp_path / "log"))
    settings = os.environ | {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    with running(folder, *options) as service:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json", "--checks", "all"]
        command += ["--max-examples", str(scaled(50)), "--seed", str(SEED), "--continue-on-failure", "--no-color"]
        command += ["--header", f"X-API-Key: {key}"]
        run_process(*command, cwd=tmp_path, env=settings)
        assert '"level":"error"' not in service.log.read_text()
