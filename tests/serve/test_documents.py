"""The OpenAPI document and its page: what a developer opens first."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import opened
from tests.support.service import Service, a_list, publish_lists, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("documents") / "store"
    asyncio.run(publish_lists(folder, {"user:42": a_list(*map(str, range(20))), "item:42": a_list("7")}))
    with running(folder) as running_service:
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
    print(page.requested)
    assert all(address.startswith((service.url, "data:")) for address in page.requested)
    assert any(address.startswith(f"{service.url}/v1/recommendations/42?") for address in page.requested)
    assert page.complaints == []
