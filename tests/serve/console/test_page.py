"""The console in a real browser: operators change releases behind the confirmation, try users, and see what is so."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.console.console import FILES
from tests.support.browser import Page, opened
from tests.support.npm import installed
from tests.support.service import Service, a_list, publish_lists, running

AXE = "4.14.1"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "store"


@pytest.fixture(scope="module")
def releases(folder: Path) -> list[str]:
    """Three releases, the second of which is live."""
    marks = {"a": True, "b": True, "<img src=x>": False}
    return [
        asyncio.run(publish_lists(folder, {"user:42": a_list(mark, "b"), "item:b": a_list("c")}, live=live))
        for mark, live in marks.items()
    ]


@pytest.fixture(scope="module")
def service(folder: Path, releases: list[str]) -> Iterator[Service]:
    assert len(releases) == 3
    with running(folder, "--workers", "2", "--admin-store", f"file://{folder}") as service:
        yield service


@asynccontextmanager
async def console(service: Service, folder: Path, *, theme: str = "light", width: int = 1280) -> AsyncIterator[Page]:
    """Open the console, until its figures are there; at the end nothing was complained of or requested elsewhere."""
    async with opened("about:blank", folder) as page:
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
        assert [each for each in page.requested if not each.startswith((service.admin_url, "about:"))] == []


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
    found: str = tier["live"]
    return found


async def test_an_operator_activates_rolls_back_and_tries_a_user(
    service: Service, releases: list[str], tmp_path: Path
) -> None:
    _, before, candidate = releases
    async with console(service, tmp_path) as page:
        assert await page.evaluate("document.getElementById('status').textContent") == "ready"
        await click(page, f"Activate {candidate}…")
        assert "Users with a list in both" in await page.until("document.querySelector('#confirm .facts')?.innerText")
        assert await page.evaluate("document.activeElement.textContent") == "Cancel"
        await click(page, "Cancel")
        assert live(service) == before
        await click(page, f"Activate {candidate}…")
        await click(page, "Activate", "document.getElementById('confirm')")
        await page.until(
            f"document.querySelector('#releases-body .pill.good').closest('tr').innerText.includes('{candidate}')"
        )
        assert live(service) == candidate
        await page.evaluate("document.getElementById('try-id').value = '42'")
        await click(page, "Show")
        shown = await page.until("document.querySelector('#try-result .facts-line')?.innerText")
        assert "personal" in shown
        assert candidate in await page.until(
            f"[...document.querySelectorAll('#workers td.code')].every((each) => each.innerText === '{candidate}')"
            " && document.querySelector('#workers').innerText"
        )
        await click(page, "Show")
        await page.until(f"document.querySelector('#try-result .facts-line')?.innerText.includes('{candidate}')")
        assert "Title <img src=x>" in await page.evaluate("document.querySelector('#try-result tbody').innerText")
        await click(page, "Similar to Title b")
        await page.until("document.querySelector('#try-result h3')?.innerText === 'Similar to b'")
        await click(page, "Roll back…")
        await page.until("document.querySelector('#confirm .facts') !== null")
        await click(page, "Roll back", "document.getElementById('confirm')")
        await page.until("!document.getElementById('confirm').open")
        assert live(service) == before
        lines = await page.until("document.getElementById('log-lines').innerText")
        assert f"{before} is live" in lines


@pytest.mark.soak
async def test_an_operator_starts_and_aborts_a_canary(service: Service, releases: list[str], tmp_path: Path) -> None:
    def canary() -> object:
        (tier,) = service.admin("/v1/releases").json["tiers"]
        if "canary" not in tier:
            pytest.skip("this version of the service has no canaries")
        return tier["canary"]

    assert canary() is None
    candidate = releases[2]
    async with console(service, tmp_path) as page:
        await click(page, f"Canary of {candidate}…")
        await page.evaluate("document.getElementById('percent').value = '20'")
        await page.until("document.querySelector('#confirm .facts') !== null")
        await click(page, "Start the canary", "document.getElementById('confirm')")
        await page.until("document.getElementById('releases-body').innerText.includes('canary, 20 %')")
        assert canary() == {"release": candidate, "percent": 20}
        other = next(one for one in releases if one not in (candidate, live(service)))
        await click(page, "Promote…")
        service.admin("/v1/releases/canary/abort", "POST")
        service.admin(f"/v1/releases/{other}/canary?percent=20", "POST")  # while the dialog is open
        await click(page, "Promote", "document.getElementById('confirm')")
        await page.until("document.getElementById('confirm-error').innerText.includes('is not the canary')")
        assert canary() == {"release": other, "percent": 20}
        assert "409" in page.complaints.pop()
        await page.evaluate("document.getElementById('confirm-cancel').click()")
        await page.until(f"document.getElementById('releases-body').innerText.includes('Canary: {other}')")
        await click(page, "Abort…")
        await click(page, "Abort", "document.getElementById('confirm')")
        await page.until("!document.getElementById('releases-body').innerText.includes('canary, 20 %')")
        assert canary() is None


@pytest.mark.soak
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
async def test_the_page_is_accessible_in_both_themes_and_on_a_phone(
    service: Service, tmp_path: Path, theme: str, width: int, pytestconfig: pytest.Config
) -> None:
    axe = installed(pytestconfig, "axe-core", AXE) / "node_modules/axe-core/axe.min.js"
    async with console(service, tmp_path, theme=theme, width=width) as page:
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
                await page.until("document.querySelector('#confirm .facts') !== null")
            found = json.loads(await page.evaluate("axe.run().then((found) => JSON.stringify(found.violations))"))
            serious = [
                (each["id"], [node["html"] for node in each["nodes"]]) for each in found if each["impact"] in SERIOUS
            ]
            assert serious == []


@pytest.mark.soak
async def test_the_page_works_by_keyboard_and_says_when_the_service_is_gone(
    folder: Path, releases: list[str], tmp_path: Path
) -> None:
    assert releases, "a rollback has somewhere to go"

    async def press(page: Page, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13, "Escape": 27}[key]
            await page.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                text="\r" if key == "Enter" and kind == "keyDown" else "",
            )  # fmt: skip

    with running(folder, "--workers", "2", "--admin-store", f"file://{folder}") as service:
        async with console(service, tmp_path) as page:
            await press(page, "Tab")
            assert await page.evaluate("document.activeElement.className") == "skip"
            await press(page, "Enter")
            await press(page, "Tab")
            assert await page.evaluate("document.activeElement.textContent") == "Roll back…"
            await press(page, "Enter")
            await page.until("document.getElementById('confirm').open")
            await press(page, "Escape")
            await page.until("!document.getElementById('confirm').open")
            assert await page.evaluate("document.activeElement.textContent") == "Roll back…"
            service.stop()
            await page.until("document.getElementById('status').textContent === 'no connection'")
            assert "Trying again" in await page.evaluate("document.getElementById('notices').innerText")
            page.complaints.clear()  # the browser logs that nobody listens any more


@pytest.mark.soak
async def test_beyond_loopback_the_page_takes_a_key_and_keeps_it_to_itself(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    admin, reader = create(keys, "operator", ["admin"]).key, create(keys, "web", ["read"]).key
    given = ("--admin-host", "0.0.0.0", "--keys", str(keys), "--workers", "2")
    with running(folder, *given) as service:
        assert service.admin("/console").status == 200
        assert service.admin("/console/main.js").status == 200
        for each in ("stream", "service", "keys", "user?id=42", "diff?release=x"):
            assert service.admin(f"/console/{each}").status == 401
        assert service.admin("/console/service", X_API_Key=reader).status == 403
        async with opened(f"{service.admin_url}/console", tmp_path) as page:
            for key in ("hp_nobody", reader, admin):
                await page.until("document.getElementById('sign-in')?.open && !document.getElementById('key').value")
                await page.evaluate(
                    f"document.getElementById('key').value = '{key}'; "
                    "document.getElementById('sign-in-form').requestSubmit(); 0"
                )
            await page.until("document.querySelectorAll('#workers tbody tr').length === 2")
            rows = await page.until("document.querySelector('#keys tbody')?.innerText")
            assert "operator" in rows
            page_text = await page.evaluate("document.documentElement.outerHTML + JSON.stringify({...localStorage})")
            assert admin not in page_text
            assert all(admin not in each for each in page.requested)
            assert "--admin-store" in await page.evaluate("document.getElementById('releases-body').innerText")


def test_all_of_the_page_is_packaged() -> None:
    names = {each.name for each in FILES.iterdir()}
    assert {"index.html", "console.css", "main.js", "icon.svg"} <= names
