"""The runbook's commands, run as written: those of hotplate on separate stores, those of curl on a service."""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from tests.support.command import succeeded
from tests.support.kubernetes import tool
from tests.support.monitoring import RUNBOOK
from tests.support.processes import run_process
from tests.support.service import a_list, published, running

pytestmark = pytest.mark.k8s

LINES = [line.strip() for line in RUNBOOK.read_text().splitlines() if line.startswith("    ")]
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("hotplate ")))
REQUESTS = list(dict.fromkeys(line for line in LINES if line.startswith(("curl ", "admin "))))
(FUNCTION,) = (line for line in LINES if line.startswith("admin()"))


@dataclass(frozen=True, slots=True)
class Ground:
    """Two stores that have one release live, before which the first one's canary was, and a file of keys."""

    folder: Path
    release: str

    @property
    def variables(self) -> dict[str, str]:
        stores = {name: f"file://{self.folder / name.lower()}" for name in ("STORE", "OTHER")}
        named = {"BACKUP": str(self.folder / "other"), "KEYS": str(self.folder / "keys.json")}
        return stores | named | {"RELEASE": self.release, "KEY": "unused"}

    def copied(self, to: Path) -> "Ground":
        """Return a copy that may be changed."""
        shutil.copytree(self.folder, to)
        return Ground(to, self.release)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("runbook") / "ground"
    before, release = (published(folder / "store", {"user:42": a_list(mark, "c")}) for mark in ("a", "b"))
    prepared = Ground(folder, release)
    names = prepared.variables
    succeeded("releases", "copy", "--from", names["STORE"], "--to", names["OTHER"])
    succeeded("releases", "canary", before, "--percent", "5", "--store", names["STORE"])
    create(folder / "keys.json", "old", ["read"])
    return prepared


@pytest.fixture(scope="module")
def addresses(ground: Ground) -> Iterator[dict[str, str]]:
    with running(ground.folder / "store") as service:
        service.get("/v1/recommendations/42")
        yield {"SERVICE": service.url, "ADMIN": service.admin_url}


@pytest.mark.parametrize("line", COMMANDS)
def test_runbook_command_has_its_effect(line: str, ground: Ground, tmp_path: Path) -> None:
    variables = ground.copied(tmp_path / "ground").variables
    words = [re.sub(r"\$(\w+)", lambda match: variables[match[1]], word) for word in shlex.split(line)[1:]]
    if "rebuild" in words:
        (tmp_path / "ground" / "store" / "catalogue.json").unlink()
    if "restore" in words:
        shutil.rmtree(tmp_path / "ground" / "store")
    succeeded(*words)


@pytest.mark.parametrize("line", REQUESTS)
def test_runbook_request_shows_its_information(line: str, ground: Ground, addresses: dict[str, str]) -> None:
    tool("curl")
    environment = os.environ | ground.variables | addresses
    command = ["bash", "-o", "pipefail", "-c", f"{FUNCTION}\n{line}"]
    done = run_process(*command, env=environment)
    assert done.stdout
