"""The picture of a report in the README, of a report that `hotplate bench stores` has just written.

`python -m tests.support.report_screenshot hotplate-stores.html docs/images/comparison.png`
"""

import asyncio
import base64
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.browser import opened

WIDTH = 1280


async def photograph(report: Path, picture: Path) -> None:
    """Photograph a report as it looks when it is opened, down to its end."""
    with TemporaryDirectory() as folder:
        async with opened(report.resolve().as_uri(), Path(folder)) as page:
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=WIDTH, height=800, deviceScaleFactor=1, mobile=False
            )
            height = await page.until("document.querySelector('details') && document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
            shot = await page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
            picture.write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    asyncio.run(photograph(*map(Path, sys.argv[1:])))
