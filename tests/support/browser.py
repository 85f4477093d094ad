"""A page in a real browser, driven by the DevTools protocol: its requests, errors and contents."""

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from tests.support.processes import skip_without
from tests.support.service import until

# The browser contacts only this machine.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def chromium() -> str:
    """Return the browser's path; without one the test is skipped, or fails if it is required."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        skip_without("chromium", "chromium is not here")
    return program


@dataclass(slots=True)
class Page:
    socket: ClientWebSocketResponse
    requested: list[str] = field(default_factory=list)
    """The addresses that the page requested."""

    complaints: list[str] = field(default_factory=list)
    """What the browser logged: errors, and what a policy forbade."""

    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    replies: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self.numbers)
        self.replies[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_str(json.dumps({"id": number, "method": method, "params": parameters}))
        async with asyncio.timeout(60):
            return await self.replies[number]

    async def evaluate(self, expression: str) -> Any:  # noqa: ANN401 -- whatever JavaScript gives
        reply = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    async def until(self, expression: str) -> Any:  # noqa: ANN401 -- whatever JavaScript gives
        """Wait until an expression is true, and return its value."""
        async with asyncio.timeout(60):
            while not (value := await self.evaluate(expression)):
                await asyncio.sleep(0.05)
        return value

    async def listen(self) -> None:
        async for message in self.socket:
            assert message.type is WSMsgType.TEXT
            event = json.loads(message.data)
            if "id" in event:
                self.replies.pop(event["id"]).set_result(event.get("result", event))
            elif event["method"] == "Network.requestWillBeSent":
                self.requested.append(event["params"]["request"]["url"])
            elif event["method"] == "Log.entryAdded":
                self.complaints.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(event["params"]["exceptionDetails"]))


@asynccontextmanager
async def opened(browser: str, url: str) -> AsyncIterator[Page]:
    """Open *url* in a new window of a browser that `running_browser` started, until the block ends.

    The window shares no cookies, storage or cache with others.
    """
    async with ClientSession() as session:
        async with session.get(f"{browser}/json/version") as response:
            socket_url = (await response.json())["webSocketDebuggerUrl"]
        async with _attached(session, socket_url) as whole:
            context = (await whole.call("Target.createBrowserContext"))["browserContextId"]
            target = await whole.call("Target.createTarget", url="about:blank", browserContextId=context)
            page_url = f"{browser.replace('http', 'ws')}/devtools/page/{target['targetId']}"
            try:
                async with _attached(session, page_url) as page:
                    for domain in ("Network", "Log", "Runtime", "Page"):
                        await page.call(f"{domain}.enable")
                    await page.call("Page.navigate", url=url)
                    yield page
            finally:
                await whole.call("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def running_browser(folder: Path) -> Iterator[str]:
    """Run headless Chromium, with its profile in *folder*, until the block ends; yield the URL of its DevTools."""
    profile = folder / "profile"
    command = [chromium(), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{_debugging_port(profile / 'DevToolsActivePort')}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with all the processes that it started
        process.wait()


@asynccontextmanager
async def _attached(session: ClientSession, url: str) -> AsyncIterator[Page]:
    """Connect to the DevTools of a page, or of the whole browser."""
    async with session.ws_connect(url, max_msg_size=0) as socket:
        page = Page(socket)
        listening = asyncio.create_task(page.listen())
        yield page
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


def _debugging_port(file: Path) -> int:
    """Return the port that the browser writes down once it listens."""
    until(lambda: file.exists() and file.read_text().splitlines(), "the browser does not listen")
    return int(file.read_text().splitlines()[0])
