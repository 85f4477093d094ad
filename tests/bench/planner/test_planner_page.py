"""The planner as a page, in a real browser and by plain requests."""

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest

from hotplate.base.report import Report, Row, format_cell, from_json, to_json
from hotplate.bench.planner.serving_options import OPTION_NAMES
from tests.support.browser import Page, opened
from tests.support.command import hotplate, json_of
from tests.support.npm import installed
from tests.support.paths import ROOT

AXE = "4.14.1"
SERIOUS = ("serious", "critical")
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\S*")
QUERY = "users=2M&peak_rps=700&zipf=0.9"
INPUTS = ("--users", "2M", "--peak-rps", "700", "--zipf", "0.9")


def address_of(lines: IO[str]) -> str:
    for line in lines:
        if (address := ADDRESS.search(line)) is not None:
            return address[0]
    raise AssertionError("the command ended without an address")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of `bench ru` with two levels."""
    rows = [
        Row(f"{ru:,} RU/s", figure, unit, value)
        for ru in (400, 1_000)
        for figure, unit, value in (("RU/s provisioned", "", ru), ("reads/s", "", ru), ("p99", "us", 9_000.0))
    ]
    path = tmp_path_factory.mktemp("sweep") / "ru.json"
    path.write_text(
        json.dumps(
            to_json(
                Report(
                    kind="ru",
                    sentence="1,000 RU/s carry 1,000 reads/s.",
                    rows=tuple(rows),
                    extra={"subject": "cosmos://shop/hotplate"},
                )
            )
        )
    )
    return path


@pytest.fixture(scope="module")
def address(sweep: Path) -> Iterator[str]:
    """The address that `plan --open` prints, with its query; the command ends at Ctrl-C with exit code 0."""
    command = [sys.executable, "-m", "hotplate", "plan", "--open", *INPUTS, "--from-report", str(sweep)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        shown = address_of(process.stderr)
        watchdog.cancel()
        try:
            yield shown
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@asynccontextmanager
async def planner(browser: str, address: str, *, theme: str = "light", width: int = 1280) -> AsyncIterator[Page]:
    """Open the page and wait for its plots; at the end nothing was logged or requested elsewhere."""
    async with opened(browser, "about:blank") as page:
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await page.call("Page.navigate", url=address)
        await page.until("document.querySelectorAll('#plots figure').length === 4")
        yield page
        assert page.complaints == []
        server = "{0.scheme}://{0.netloc}".format(urlsplit(address))
        elsewhere = [url for url in page.requested if not url.startswith((server, "about:", "data:"))]
        assert elsewhere == []


def status_of(address: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


async def change(page: Page, **values: str) -> None:
    """Type values into fields of the form, one right after the other."""
    for name, value in values.items():
        field = f"document.querySelector('#inputs [name={name}]')"
        await page.evaluate(
            f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
    for name, value in values.items():
        await page.until(f"new URLSearchParams(location.search).get('{name}') === {json.dumps(value)}")


def texts(selector: str, of: str = "document") -> str:
    return f"[...{of}.querySelectorAll('{selector}')].map((cell) => cell.textContent)"


async def shown_table(page: Page, where: str) -> list[list[str]]:
    """Return the lines of the first table: subject and cells."""
    lines: list[list[str]] = await page.evaluate(
        f"[...document.querySelectorAll('{where} tbody tr')].map((line) => {texts('th, td', of='line')})"
    )
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in line] for line in lines]


def table_of(facts: dict[str, Any]) -> list[list[str]]:
    """Return the lines that the command prints for these facts."""
    planned = from_json(facts)
    return [
        [subject, *(format_cell(planned.row(subject, column.figure), column) for column in planned.columns)]
        for subject in planned.subjects
    ]


def figures(facts: dict[str, Any]) -> dict[str, str]:
    return {row["subject"] + "/" + row["figure"]: row["value"] for row in facts["rows"]}


async def test_inputs_change_the_answer_to_that_of_the_command(browser: str, address: str) -> None:
    async with planner(browser, address) as page:
        before = await page.evaluate("document.getElementById('answer').textContent")
        assert before == json_of("plan", "--users", "2M", "--peak-rps", "700", "--zipf", "0.9")["sentence"]
        await change(page, regions="3", peak_rps="4000", encoding="json")
        await page.until(f"document.getElementById('answer').textContent !== {json.dumps(before)}")
        await page.until("document.getElementById('command').textContent.includes('--encoding json')")
        command = shlex.split(await page.evaluate("document.getElementById('command').textContent"))
        assert command[:2] == ["hotplate", "plan"]
        expected = json_of(*command[1:])
        assert await page.evaluate("document.getElementById('answer').textContent") == expected["sentence"]
        assert await shown_table(page, "#summary") == table_of(expected)
        other_figures = [row["figure"] for row in expected["rows"] if row["figure"] not in OPTION_NAMES]
        assert await page.evaluate(f"{texts('#figures th[scope=row]')}") == other_figures


@pytest.mark.soak
async def test_shown_file_and_command_give_the_same_plan(browser: str, address: str, tmp_path: Path) -> None:
    async with planner(browser, address) as page:
        await change(page, users="5M")
        await page.until("document.getElementById('command').textContent.includes('--users 5M')")
        command = shlex.split(await page.evaluate("document.getElementById('command').textContent"))
        assert command[:2] == ["hotplate", "plan"]
        file = tmp_path / "plan.toml"
        file.write_text(await page.evaluate("document.getElementById('toml').textContent"))
        shown = await page.evaluate("document.getElementById('answer').textContent")
    by_command = json_of(*command[1:])
    by_file = json_of("plan", "--from", file)
    assert by_command["sentence"] == by_file["sentence"] == shown
    assert figures(by_command) == figures(by_file)


async def test_plots_show_daily_cost_and_the_measured_sweep(browser: str, address: str) -> None:
    async with planner(browser, address) as page:
        labels = await page.evaluate("[...document.querySelectorAll('#plots .wide svg')].map((plot) => plot.ariaLabel)")
        assert labels == [
            "Plot: What the store costs, by rate; USD a month over requests/s in the busiest hour",
            "Plot: A day's load, and the RU/s for it; RU/s over hour of the day",
            "Plot: By RU/s: reads/s; reads/s over RU/s provisioned",
            "Plot: By RU/s: p99; p99 over RU/s provisioned",
        ]
        cost = await page.evaluate(f"{texts('#plots .wide svg text')}.join(' ')")
        reason = await page.evaluate("document.getElementById('summary').textContent")
        from_rps = re.search(r"costs less than Cosmos DB only from ([\d,]+) to [\d,]+ requests/s", reason)
        assert from_rps is not None
        assert f"break-even: {from_rps[1]}/s" in cost
        caption = await page.evaluate("document.querySelector('#plots figure:last-child figcaption').textContent")
        assert caption.endswith("1,000 RU/s carry 1,000 reads/s.")


@pytest.mark.parametrize(
    ("text", "expected"), [("a few", "must be a whole number"), ("NaN", "must be at least 1 and at most 60")]
)
async def test_invalid_input_is_explained_and_marked_and_the_plan_hidden(
    browser: str, address: str, text: str, expected: str
) -> None:
    """The answer for other inputs stayed beside it."""
    async with planner(browser, address) as page:
        before = await page.evaluate("document.getElementById('answer').textContent")
        await change(page, regions=text)
        problem = await page.until("document.querySelector('#problems .problem')?.textContent")
        assert problem.startswith("regions is ")
        assert expected in problem
        assert await page.evaluate("document.getElementById('answer').textContent") == "No plan for these inputs"
        for shown in ("summary", "plots", "notes", "all", "elsewhere"):
            assert await page.evaluate(f"document.getElementById('{shown}').checkVisibility()") is False
        invalid = "[...document.querySelectorAll('[aria-invalid=true]')].map((field) => field.name)"
        assert await page.evaluate(invalid) == ["regions"]

        await change(page, regions="1")
        same = before.partition(" Assumed: ")[0]  # but for the number of assumed inputs
        await page.until(f"document.getElementById('answer').textContent.startsWith({json.dumps(same)})")
        assert await page.evaluate(invalid) == []
        assert await page.evaluate("document.getElementById('summary').checkVisibility()") is True
        page.complaints.clear()  # the browser logs the refused request


async def test_an_address_with_an_invalid_input_shows_the_form_to_correct_it(browser: str, address: str) -> None:
    """There was no form, and so no way to correct it."""
    wrong = address.replace("peak_rps=700", "peak_rps=lots")
    assert wrong != address
    async with opened(browser, wrong) as page:
        await page.until("document.querySelector('#problems .problem')?.textContent")
        assert await page.evaluate("document.querySelector('#inputs [name=peak_rps]').value") == "lots"
        await change(page, peak_rps="700")
        await page.until("document.getElementById('answer').textContent.startsWith('Cheapest for ')")
        page.complaints.clear()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
async def test_page_fits_the_screen_and_is_accessible(
    browser: str, address: str, pytestconfig: pytest.Config, theme: str, width: int
) -> None:
    axe = installed(pytestconfig, f"axe-core@{AXE}") / "node_modules/axe-core/axe.min.js"
    async with planner(browser, address, theme=theme, width=width) as page:
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        words = "[...document.querySelectorAll('#plots svg text')].filter((text) => text.checkVisibility())"
        assert await page.evaluate(f"{words}.length") > 10
        assert await page.evaluate(f"{words}.every((text) => text.getBoundingClientRect().right <= innerWidth)")
        options = "[...document.querySelectorAll('#summary .option')]"
        assert await page.evaluate(f"{options}.length") > 2
        assert await page.evaluate(f"{options}.every((option) => option.getClientRects().length === 1)")
        await page.evaluate(axe.read_text() + "; 0")
        violations = json.loads(await page.evaluate("axe.run().then((result) => JSON.stringify(result.violations))"))
        serious = [
            (violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in violations
            if violation["impact"] in SERIOUS
        ]
        assert serious == []


async def test_every_input_is_reached_by_the_keyboard(browser: str, address: str) -> None:
    async with planner(browser, address) as page:
        names = await page.evaluate("[...document.querySelectorAll('#inputs [name]')].map((field) => field.name)")
        reached = []
        for _ in names:
            for kind in ("keyDown", "keyUp"):
                await page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            reached.append(await page.evaluate("document.activeElement.name"))
        assert reached == names
        assert len(names) == 11


def test_only_loopback_hosts_with_the_token_are_answered(address: str) -> None:
    parts = urlsplit(address)
    root = f"{parts.scheme}://{parts.netloc}"
    assert status_of(address) == 200
    assert status_of(f"{root}{parts.path}", Host="localhost:80") == 200
    assert status_of(f"{root}{parts.path}", Host="planner.example") == 421
    assert status_of(f"{root}/plan?{QUERY}") == 404
    assert status_of(f"{root}{parts.path}page/../planner_page.py") == 404
    assert status_of(f"{root}{parts.path}plan?users={'9' * 5000}") == 422


@pytest.mark.parametrize(
    ("invalid", "sentence"),
    [("speed=1", "peed is not an input of a plan"), ("users=none", "sers is 'none'")],
)
def test_invalid_input_is_refused_before_a_page_opens(invalid: str, sentence: str) -> None:
    done = hotplate("plan", "--open", "--set", invalid)
    assert done.returncode == 2
    assert sentence in done.stderr
