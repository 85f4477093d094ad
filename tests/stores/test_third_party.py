"""A third-party store in a separate distribution: installed, held to the contract, and found by its URL."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import run_process

EXAMPLE = ROOT / "tests" / "third_party" / "hotplate-store-sqlite"


def run(installed: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder with the installed packages; pytest finds neither settings nor plugins there."""
    return run_process(
        sys.executable,
        *arguments,
        code=None,
        timeout=100,
        cwd=installed,
        env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


# Verbs one after the other in one process: a new process each would take a second of a core.
VERBS = """
import json, sys
from hotplate.cli.main import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["hotplate", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
"""


# Follows an empty store, stands still between two polls, and prints the age of the catalogue then.
AGE = """
import asyncio, sys, time
from hotplate.serve.releases.follower import Follower
from hotplate_store_sqlite import open_url

async def main():
    store = open_url(sys.argv[1])
    follower = Follower(store)
    following = asyncio.create_task(follower.run())
    await follower.attempted.wait()
    time.sleep(float(sys.argv[2]))
    print(follower.catalogue_age_s)
    following.cancel()
    await asyncio.wait([following])
    await store.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source") / "example"
    target = tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source)
    done = run(
        target, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--no-build-isolation", "--target", target, source,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("test_hotplate_store_sqlite.py", "pyproject.toml"):
        shutil.copy(source / name, target)
    return target


def test_example_store_keeps_the_contract(installed: Path) -> None:
    done = run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert " 5 skipped" in done.stdout, "for what it cannot do, and 3 stalls"


def test_command_finds_the_store_by_its_url(installed: Path, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/lists.db"
    empty = run(installed, "-m", "hotplate", "releases", "list", "--store", url)
    assert (empty.returncode, f"was ever published to {url}" in empty.stderr) == (1, True)
    (tmp_path / "lists.csv").write_text("user,item,score\n1,a,0.5\n")
    verbs = [
        ["import", f"{tmp_path}/lists.csv"],
        ["lookup", "1", "--json"],
        ["store", "doctor"],
        ["releases", "verify"],
    ]
    done = run(installed, "-c", VERBS, json.dumps([[*verb, "--store", url] for verb in verbs]))
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert ("is live" in done.stdout, '"a"' in done.stdout) == (True, True)


def test_age_of_the_catalogue_is_the_time_since_the_last_poll(installed: Path, tmp_path: Path) -> None:
    stood_still_s = 0.2
    done = run(installed, "-c", AGE, f"sqlite://{tmp_path}/lists.db", str(stood_still_s))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= stood_still_s
