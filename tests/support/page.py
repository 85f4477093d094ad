"""A report's page: its outline, and the addresses that it requests when a real browser opens it."""

import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

# What Chromium's network log marks the requests of a page with (`blink_resource_loader`); its own have other marks.
PAGES_OWN = 101845102


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses = list[str]()
        self.ids = list[str]()
        self.tags = set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action"}]


# How a browser is started that looks at nothing but this machine.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def chromium() -> str:
    """Return the browser; the test is skipped, or fails, where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if "chromium" in os.environ.get("HOTPLATE_REQUIRE", "").split(","):
            pytest.fail("chromium is not here, and HOTPLATE_REQUIRE wants it")
        pytest.skip("chromium is not here")
    return found


def opened(path: Path, folder: Path, scheme: int) -> list[str]:
    """Open a page in headless Chromium and return the addresses that the page requested."""
    log = folder / f"net-{scheme}.json"
    flags = [
        *FLAGS, f"--user-data-dir={folder / f'profile-{scheme}'}", f"--log-net-log={log}", "--window-size=1100,1600",
        f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={folder / f'page-{scheme}.png'}",
    ]  # fmt: skip
    subprocess.run([chromium(), *flags, path.as_uri()], check=True, capture_output=True, timeout=60)
    assert (folder / f"page-{scheme}.png").stat().st_size > 5_000
    events = (json.loads(line.rstrip(",\n")) for line in log.read_text().splitlines() if '"url":"http' in line)
    requested = [event["params"] for event in events if event["params"].get("traffic_annotation") == PAGES_OWN]
    return [params["url"] for params in requested]
