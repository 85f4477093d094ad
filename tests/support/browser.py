"""A page in a real browser, driven by the DevTools protocol: its requests, errors and contents."""

import asyncio
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

# How a browser is started that looks at nothing but this machine.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def chromium() -> str:
    """Return the browser's path; without one the test is skipped, or fails if it is required."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if "chromium" in os.environ.get("HOTPLATE_REQUIRE", "").split(","):
            pytest.fail("chromium is not here, and HOTPLATE_REQUIRE wants it")
        pytest.skip("chromium is not here")
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
async def opened(url: str, folder: Path) -> AsyncIterator[Page]:
    """Open *url* in headless Chromium, with its profile in *folder*, until the block ends."""
    profile = folder / "profile"
    with (folder / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            chromium(), *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        port = await _debugging_port(profile / "DevToolsActivePort")
        async with ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                target = next(candidate for candidate in await response.json() if candidate["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Network", "Log", "Runtime", "Page"):
                    await page.call(f"{domain}.enable")
                await page.call("Page.navigate", url=url)
                yield page
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with all the processes that it started
        await process.wait()


async def _debugging_port(file: Path) -> int:
    """Return the port that the browser writes down once it listens."""
    async with asyncio.timeout(60):
        while not (file.exists() and (lines := file.read_text().splitlines())):
            await asyncio.sleep(0.05)
    return int(lines[0])
