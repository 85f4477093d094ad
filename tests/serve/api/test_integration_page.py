"""The programs of the integration page run as they stand, but for the port."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.service import Service, a_list, publish_lists, running

PAGE = (ROOT / "docs" / "integration.md").read_text()
STATED = "127.0.0.1:8080"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("integration") / "store"
    asyncio.run(publish_lists(folder, {"user:42": a_list("a", "b", "c", "d")}))
    with running(folder) as running_service:
        yield running_service


def program(language: str, service: Service) -> str:
    """Return what the page shows for a language, with the service's address and patience for a busy machine."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert STATED in code
    replaced = {
        STATED: f"127.0.0.1:{service.port}",
        "…": "key",
        "(0.25, 0.25)": "(60, 60)",
        "timeout(250)": "timeout(60000)",
    }
    for shown, used in replaced.items():
        code = code.replace(shown, used)
    return str(code)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on the PATH")
def test_the_lines_for_curl_get_a_list_and_a_batch(service: Service) -> None:
    first, second = (line for line in program("sh", service).splitlines() if line)
    if "--json" not in run("curl", "--help", "all"):
        pytest.skip("this curl is older than 7.82")
    assert [item["id"] for item in json.loads(run("sh", "-c", first))["items"]] == ["a", "b", "c"]
    assert [one["source"] for one in json.loads(run("sh", "-c", second))["results"]] == ["personal", "popular"]


def test_the_python_program_prints_a_list_and_goes_without_one_where_nothing_answers(
    service: Service,
) -> None:
    assert run(sys.executable, "-c", program("python", service)).strip() == "['a', 'b', 'c']"
    assert run(sys.executable, "-c", program("python", service).replace(str(service.port), "1")).strip() == "[]"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the PATH")
def test_the_javascript_program_prints_a_list_and_goes_without_one_where_nothing_answers(
    service: Service, tmp_path: Path
) -> None:
    module = tmp_path / "program.mjs"
    module.write_text(program("js", service))
    assert json.loads(run("node", str(module))) == ["a", "b", "c"]
    module.write_text(program("js", service).replace(str(service.port), "1"))
    assert json.loads(run("node", str(module))) == []
