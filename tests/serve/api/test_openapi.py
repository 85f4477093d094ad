"""The OpenAPI document holds: a real service with keys answers whatever it allows, and refuses the rest."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from tests.support.factors import factor_rows
from tests.support.paths import ROOT
from tests.support.service import Service, a_list, publish_lists, running
from tests.support.soak import SEED, scaled


@dataclass(frozen=True, slots=True)
class Keyed:
    service: Service
    key: str


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("openapi")
    lists = {f"user:{user}": a_list(*map(str, range(20))) for user in ("42", "0", "a/b", "é")}
    lists |= {"item:42": a_list("7", "8"), "popular:France": a_list("vin", "pain")}
    lists |= factor_rows(*map(str, range(20)))
    asyncio.run(publish_lists(folder / "store", lists))
    key = create(folder / "keys.json", "explorer", ["read", "events"]).key
    with running(
        folder / "store", "--fold-in", "--keys", str(folder / "keys.json"), "--events", str(folder / "log")
    ) as service:
        yield Keyed(service, key)


def explore(keyed: Keyed, folder: Path, examples: int, seed: int) -> None:
    """Have schemathesis try every route, with sense and with nonsense, and hold each answer to the document."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{keyed.service.url}/openapi.json", "--checks", "all"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--no-color"]
    command += ["--header", f"X-API-Key: {keyed.key}"]
    settings = os.environ | {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(line[:500] for line in (done.stdout + done.stderr).splitlines())
    assert '"level":"error"' not in keyed.service.log.read_text()


def test_schemathesis_finds_nothing(keyed: Keyed, tmp_path: Path) -> None:
    explore(keyed, tmp_path, 20, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_schemathesis_finds_nothing_with_more_examples(keyed: Keyed, tmp_path: Path) -> None:
    explore(keyed, tmp_path, scaled(120, least=50), SEED)
