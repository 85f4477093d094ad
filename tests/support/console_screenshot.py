"""The picture of the console in the README: `python -m tests.support.console_screenshot docs/images/console.png`.

It trains two models on the sample data, serves their releases out of a Redis and a folder, sends the service some two
hundred requests a second for five minutes, so that the curves are whole, and photographs the page in Chromium.
"""

import asyncio
import base64
import json
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from aiohttp import ClientSession

from offline.input.sample import sample
from tests.support.browser import opened
from tests.support.command import hotplate
from tests.support.redis_server import running
from tests.support.service import Service, serving

LOAD_S, CLIENTS, PER_CLIENT_S = 310.0, 8, 25.0
WIDTH, HEIGHT = 1280, 820
USERS, ITEMS = 2000, 600
SHOWN = """
document.getElementById('try-id').value = 'u0042';
document.getElementById('try-form').requestSubmit();
"""


def publish(folder: Path, first: str, second: str) -> None:
    """Publish two models to the first store, and what is live there to the second."""
    sample(USERS, ITEMS).write_parquet(folder / "sample.parquet")
    for number, factors in enumerate(("16", "32")):
        model = folder / f"model-{number}"
        for words in (
            ("train", folder / "sample.parquet", "--factors", factors, "--out", model),
            ("publish", model, "--store", first),
        ):
            done = hotplate(*words)
            assert done.returncode == 0, done.stderr
    live = json.loads(hotplate("releases", "list", "--store", first, "--json").stdout)["live"]
    done = hotplate("releases", "copy", live, "--from", first, "--to", second)
    assert done.returncode == 0, done.stderr


async def load(service: Service) -> None:
    """Send requests of users, of whom some are unknown, and of items, for LOAD_S."""
    until = asyncio.get_running_loop().time() + LOAD_S

    async def client(session: ClientSession) -> None:
        while asyncio.get_running_loop().time() < until:
            user, item = random.randrange(int(USERS * 1.05)), random.randrange(ITEMS)
            path = random.choices(
                (f"recommendations/u{user:04}", f"similar/p{item:03}", "popular", "popular?n=0"), (70, 20, 9, 1)
            )[0]
            async with session.get(f"{service.url}/v1/{path}") as response:
                await response.read()
            await asyncio.sleep(random.expovariate(PER_CLIENT_S))

    async with ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))


async def photograph(service: Service, folder: Path, picture: Path) -> None:
    """Write what the first screen of the page shows."""
    async with opened("about:blank", folder) as page:
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False
        )
        await page.call("Page.navigate", url=f"{service.admin_url}/console")
        await page.until("document.querySelectorAll('#routes tbody tr').length > 2")
        await page.evaluate(SHOWN)
        await page.until("document.querySelector('#try-result tbody') !== null")
        await page.call("Emulation.setScrollbarsHidden", hidden=True)
        await asyncio.sleep(2)
        shot = await page.call("Page.captureScreenshot", format="png")
        picture.write_bytes(base64.b64decode(shot["data"]))


async def main(picture: Path) -> None:
    """Make the picture."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with running(folder) as redis:
            first, second = redis.url(prefix="shop"), f"file://{folder / 'store'}"
            await asyncio.to_thread(publish, folder, first, second)
            stores = ("--store", first, "--store", second, "--admin-store", first, "--workers", "2")
            with serving(folder, *stores, "--cache-mb", "64") as service:
                loading = asyncio.create_task(load(service))
                await asyncio.sleep(LOAD_S - 8)
                await photograph(service, folder, picture)
                await loading


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
