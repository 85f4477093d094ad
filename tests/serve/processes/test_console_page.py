"""The console in a real browser: release changes after a confirmation, user lookups, and shown state."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from tests.support import throttled_store
from tests.support.browser import Page, opened
from tests.support.npm import installed
from tests.support.service import Service, a_list, publish_lists, published, refused_by, running

AXE = "4.14.1"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "store"


@pytest.fixture(scope="module")
def releases(folder: Path) -> list[str]:
    """Three releases, the second of which is live, and the third refused by a gate."""
    marks = {"a": True, "b": True, "<img src=x>": False}
    lists = {mark: {"user:42": a_list(mark, "b"), "item:b": a_list("c")} for mark in marks}
    return [
        published(folder, lists[mark], live=live, about={} if live else refused_by("ndcg"))
        for mark, live in marks.items()
    ]


@pytest.fixture(scope="module")
def service(folder: Path, releases: list[str]) -> Iterator[Service]:
    assert len(releases) == 3
    with running(folder, "--workers", "2", "--admin-store", f"file://{folder}") as service:
        yield service


@asynccontextmanager
async def console(browser: str, service: Service, *, theme: str = "light", width: int = 1280) -> AsyncIterator[Page]:
    """Open the console, until its figures are there; at the end nothing was complained of or requested elsewhere."""
    async with opened(browser, "about:blank") as page:
        scheme = [{"name": "prefers-color-scheme", "value": theme}]
        await page.call("Emulation.setEmulatedMedia", features=scheme)
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await page.call("Page.navigate", url=f"{service.admin_url}/console")
        await page.until("document.querySelectorAll('#workers tbody tr').length === 2")
        await page.until("document.querySelectorAll('#releases-body tbody tr').length > 0")
        yield page
        assert page.complaints == []
        assert [url for url in page.requested if not url.startswith((service.admin_url, "about:"))] == []


async def click(page: Page, text: str, within: str = "document") -> None:
    """Press the button that says *text*, or is labelled so."""
    button = (
        f"[...{within}.querySelectorAll('button')].find((each) => "
        f"[each.textContent, each.getAttribute('aria-label')].includes({json.dumps(text)}))"
    )
    await page.until(f"Boolean({button})")
    await page.evaluate(f"{button}.click()")


def live(service: Service) -> str:
    (tier,) = service.admin("/v1/releases").json["tiers"]
    release: str = tier["live"]
    return release


async def test_an_operator_activates_rolls_back_and_tries_a_user(
    service: Service, releases: list[str], browser: str
) -> None:
    _, before, candidate = releases
    async with console(browser, service) as page:
        assert await page.evaluate("document.getElementById('status').textContent") == "ready"
        await click(page, f"Activate {candidate}…")
        assert await page.evaluate("document.activeElement.textContent") == "Cancel"
        await click(page, "Cancel")
        assert live(service) == before
        await click(page, f"Activate {candidate}…")
        assert "refused by ndcg" in await page.until("document.getElementById('confirm-title').innerText")
        await page.evaluate("document.getElementById('reason').value = 'for the sale'")
        await click(page, "Activate all the same", "document.getElementById('confirm')")
        await page.until(
            f"document.querySelector('#releases-body .pill.good').closest('tr').innerText.includes('{candidate}')"
        )
        assert live(service) == candidate
        await page.evaluate("document.getElementById('try-id').value = '42'")
        await click(page, "Show")
        shown = await page.until("document.querySelector('#try-result .facts-line')?.innerText")
        assert "personal" in shown
        await page.until(
            f"[...document.querySelectorAll('#workers td.code')].every((each) => each.innerText === '{candidate}')"
        )
        log = "document.querySelector('#releases-body [aria-label^=\"Log of\"] tbody tr').innerText"
        assert "for the sale" in await page.evaluate(log)
        await click(page, "Show")
        await page.until(f"document.querySelector('#try-result .facts-line')?.innerText.includes('{candidate}')")
        assert "Title <img src=x>" in await page.evaluate("document.querySelector('#try-result tbody').innerText")
        await page.evaluate("byId = document.getElementById.bind(document); byId('try-list').value = 'basket'")
        snippet = "byId('try-list').dispatchEvent(new Event('input')); byId('snippet').innerText"
        assert "/v1/recommendations/42?n=10&list=basket" in await page.evaluate(snippet)
        links = "[...document.querySelectorAll('#use-about a')].map((each) => each.href)"
        assert await page.evaluate(links) == [f"{service.url}/docs", f"{service.url}/openapi.json"]
        await click(page, "Roll back…")
        await click(page, "Roll back", "document.getElementById('confirm')")
        await page.until("!document.getElementById('confirm').open")
        assert live(service) == before
        lines = await page.until("document.getElementById('log-lines').innerText")
        assert f"{before} is live" in lines


@pytest.mark.soak
async def test_an_operator_starts_and_aborts_a_canary(service: Service, releases: list[str], browser: str) -> None:
    def canary() -> object:
        (tier,) = service.admin("/v1/releases").json["tiers"]
        state: object = tier["canary"]
        return state

    assert canary() is None
    candidate = releases[0]
    async with console(browser, service) as page:
        await click(page, f"Canary of {candidate}…")
        await page.evaluate("document.getElementById('percent').value = '20'")
        await click(page, "Start the canary", "document.getElementById('confirm')")
        await page.until("document.getElementById('releases-body').innerText.includes('canary, 20 %')")
        assert canary() == {"release": candidate, "percent": 20}
        panel = "document.getElementById('canary').innerText"
        shown = await page.until(f"{panel}.includes('since the canary {candidate} started') && {panel}")
        assert "Popular list instead" in shown
        assert "95 % interval" in shown
        await click(page, "Abort…")
        await click(page, "Abort", "document.getElementById('confirm')")
        await page.until("!document.getElementById('releases-body').innerText.includes('canary, 20 %')")
        assert canary() is None


@pytest.mark.soak
async def test_change_whose_throughput_is_not_confirmed_is_shown_with_its_warning(browser: str, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    first, _ = [await publish_lists(folder, {"user:42": a_list(mark)}) for mark in "ab"]
    options = ("--workers", "2", "--admin-store", f"file://{folder}")
    with running(folder, *options, before=throttled_store.INSTALL) as service:
        async with console(browser, service) as page:
            await click(page, "Roll back…")
            await click(page, "Roll back", "document.getElementById('confirm')")
            await page.until("!document.getElementById('confirm').open")
            warning = await page.until("document.querySelector('#releases-body .notice.warn')?.innerText")
            assert warning.startswith(f"After the last change: release {first} is live; its throughput")


@pytest.mark.soak
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
async def test_the_page_is_accessible_in_both_themes_and_on_a_phone(
    service: Service, browser: str, theme: str, width: int, pytestconfig: pytest.Config
) -> None:
    axe = installed(pytestconfig, f"axe-core@{AXE}") / "node_modules/axe-core/axe.min.js"
    async with console(browser, service, theme=theme, width=width) as page:
        await page.evaluate("document.getElementById('try-id').value = 'nobody'")
        await click(page, "Show")
        await page.until("document.querySelector('#try-result tbody') !== null")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tables = "[...document.querySelectorAll('#releases-body .scroll')]"
        assert await page.evaluate(f"{tables}.every((one) => one.scrollWidth <= one.clientWidth)"), (
            "what changes a release is in sight"
        )
        await page.evaluate(axe.read_text() + "; 0")
        for is_open in (False, True):
            if is_open:
                await click(page, "Roll back…")
                await page.until("document.getElementById('confirm').open")
            violations = json.loads(await page.evaluate("axe.run().then((found) => JSON.stringify(found.violations))"))
            serious = [
                (violation["id"], [node["html"] for node in violation["nodes"]])
                for violation in violations
                if violation["impact"] in SERIOUS
            ]
            assert serious == []


@pytest.mark.soak
async def test_beyond_loopback_the_page_takes_a_key_and_does_not_leak_it(
    folder: Path, browser: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    admin = create(keys, "operator", ["admin"]).key
    reader = create(keys, "web", ["read"]).key
    options = ("--admin-host", "0.0.0.0", "--keys", str(keys), "--workers", "2")
    with running(folder, *options) as service:
        assert service.admin("/console").status == 200
        assert service.admin("/console/main.js").status == 200
        for path in ("state", "keys", "user?id=42"):
            assert service.admin(f"/console/{path}").status == 401
        assert service.admin("/console/state", X_API_Key=reader).status == 403
        async with opened(browser, f"{service.admin_url}/console") as page:
            for key in ("hp_nobody", reader, admin):
                await page.until("document.getElementById('sign-in')?.open && !document.getElementById('key').value")
                await page.evaluate(
                    f"document.getElementById('key').value = '{key}'; "
                    "document.getElementById('sign-in-form').requestSubmit(); 0"
                )
            await page.until("document.querySelectorAll('#workers tbody tr').length === 2")
            rows = "document.querySelector('#keys tbody')?.innerText"
            assert "operator" in await page.until(rows)
            await page.evaluate("document.getElementById('client').value = 'shop'")
            await click(page, "Create a key")
            assert "hp_" in await page.until("document.querySelector('#keys-result .code')?.innerText")
            assert "shop" in await page.until(f"{rows}.includes('shop') && {rows}")
            await click(page, "Revoke shop…")
            await click(page, "Revoke", "document.getElementById('confirm')")
            await page.until(f"!{rows}.includes('shop')")
            page_text = await page.evaluate("document.documentElement.outerHTML + JSON.stringify({...localStorage})")
            assert admin not in page_text
            assert all(admin not in path for path in page.requested)
            assert "--admin-store" in await page.evaluate("document.getElementById('releases-body').innerText")
