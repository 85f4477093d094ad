"""Several versions on one store: each reads the other's records, or refuses them and overwrites nothing.

Earlier versions are checkouts of their commits, which a shallow clone lacks.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from hotplate.stores.connect import connect
from tests.support.paths import ROOT
from tests.support.processes import run_process

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

# With experiments and erased users, and without.
VERSIONS = {"dc36bc97": True, "3670814a": False}
# Records of checkouts before 0.3 that are refused, and a part of the sentence. The second has format 2 and its own
# checksum for refused releases.
NO_LONGER_READ = {
    ("dc36bc97", "erase"): "format 3, which this hotplate reads no more",
    ("3670814a", "refused"): "`hotplate store rebuild` writes a new one",
}

# Runs verbs on a store with any version, and prints the outcome of each.
PROGRAM = """
import asyncio, functools, importlib, json, pkgutil, sys
import hotplate
from hotplate.stores import lifecycle
from hotplate.stores.connect import connect
from hotplate.stores.encoding import body_of
from hotplate.stores.errors import StoreError
from hotplate.stores import publication
from hotplate.stores.store import Plan, Row
from hotplate.stores.verification import verify

url, *verbs = sys.argv[1:]
if url.startswith("redis:"):  # a busy machine may halt a process for longer than a second
    import hotplate.stores.redis as package
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for name in [name for name in vars(module) if name.endswith("TIMEOUT_S")]:
            setattr(module, name, 60.0)
KEYS = ["popular:", *(f"user:{number}" for number in range(20))]

async def put(store, **options):
    async def batches():
        yield [Row(key, body_of(json.dumps({"id": key}).encode())) for key in sorted(KEYS)]
    # Earlier versions name it differently, and need what a release is about.
    publish = getattr(publication, "publish_release", None) or functools.partial(publication.publish, about={})
    done = await publish(store, batches(), plan=Plan(len(KEYS), 2000), **options)
    return done.manifest.release

async def write(store, **options):
    not_live = {"activation": None} if hasattr(publication, "Activation") else {"live": False}
    return await put(store, **not_live, **options)

async def refuse(_):
    return ("ndcg",)

async def refused(store):
    return await write(store, refused_by=refuse)

async def canary(store):
    await lifecycle.start_canary(store, await write(store), 10.0)

async def experiment(store):
    await lifecycle.start_canary(store, await write(store), 10.0, 14)

async def erase(store):
    from hotplate.stores.users import erase_users
    await erase_users(store, ["3"])

async def prune(store):
    await lifecycle.prune(store, keep=0, grace_s=0)

async def cut_prune(store):
    update_catalogue = getattr(lifecycle, "update_catalogue", None) or lifecycle.change
    found = await update_catalogue(store, lambda found: lifecycle.changes.prune(found, 0, 0))
    return [entry.id for entry in found.releases if entry.state == "dropping"]

async def rebuild(store):
    try:
        from hotplate.stores.rebuild import rebuild, survey
    except ImportError:
        from hotplate.stores.doctor import rebuild, survey
    found = await survey(store)
    await rebuild(store, found, list(found.candidates)[-1], force=True)

async def read(store):
    found = await store.catalogue()
    await verify(store, found.live_ref)
    lists = {}
    async with hotplate.open(url, budget_s=20.0, timeout_s=20.0) as opened:
        for number in range(20):
            answer = await opened.personal(str(number), 1)
            lists[number] = answer.items[0]["id"]
    return [found.live, lists]

async def main():
    outcomes = []
    for verb in verbs:
        store = connect(url)
        try:
            outcomes.append({"done": await globals()[verb](store)})
        except StoreError as error:
            outcomes.append({"error": str(error)})
        finally:
            await store.close()
    print(json.dumps(outcomes))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder for each earlier version; skips if git does not know one."""
    folders = dict[str, Path]()
    for commit in VERSIONS:
        folder = folders[commit] = tmp_path_factory.mktemp(commit)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
        if archive.returncode:
            pytest.skip(f"no commit {commit}: {archive.stderr.decode().strip()[:80]}")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folders


def run(root: Path, url: str, verbs: Sequence[str]) -> list[dict[str, Any]]:
    """Run verbs with the version in a folder; return their outcomes."""
    command = [sys.executable, "-c", PROGRAM, url, *verbs]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = run_process(*command, cwd=root, env=environment, timeout=300)
    outcomes: list[dict[str, Any]] = orjson.loads(done.stdout.splitlines()[-1])
    return outcomes


def expected(*, erased: bool) -> dict[str, str]:
    return {str(user): "popular:" if erased and user == 3 else f"user:{user}" for user in range(20)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("state", ["canary", "cut_prune", "experiment", "refused", "erase"])
async def test_earlier_version_reads_a_store_or_asks_for_an_upgrade(
    checkouts: dict[str, Path], url: str, version: str, state: str
) -> None:
    written = run(ROOT, url, ["put", "put", state])
    assert not [outcome for outcome in written if "error" in outcome]
    live = written[1]["done"]
    verbs = ["read", "put", "prune", "canary", "rebuild", "read"]
    first, *outcomes = run(checkouts[version], url, verbs)
    if "error" in first:
        before = await catalogue_of(url)
        for verb, outcome in zip(verbs[1:], outcomes, strict=True):
            assert "upgrade hotplate" in outcome["error"], verb
        assert await catalogue_of(url) == before
        assert before.live == live
        assert state in ("experiment", "refused", "erase")
    else:
        assert first["done"] == [live, expected(erased=False)]
        assert "can be read" in outcomes[3]["error"], "its rebuild overwrote a catalogue"
    (after,) = run(ROOT, url, ["read"])
    assert after["done"][1] == expected(erased=state == "erase")
    assert not [outcome for outcome in run(ROOT, url, ["put", "prune", "read"]) if "error" in outcome]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("state", ["canary", "cut_prune", "experiment", "refused", "erase"])
async def test_a_store_of_an_earlier_version_is_read_and_written(
    checkouts: dict[str, Path], url: str, version: str, state: str
) -> None:
    if state in ("experiment", "erase") and not VERSIONS[version]:
        pytest.skip(f"{version} has no {state}")
    written = run(checkouts[version], url, ["put", "put", state])
    assert not [outcome for outcome in written if "error" in outcome]
    if (version, state) in NO_LONGER_READ:
        outcomes = run(ROOT, url, ["read", "put", "erase"])
        assert all(NO_LONGER_READ[version, state] in outcome["error"] for outcome in outcomes)
        return
    read, erased, put, pruned, again = run(ROOT, url, ["read", "erase", "put", "prune", "read"])
    assert read["done"] == [written[1]["done"], expected(erased=state == "erase")]
    assert [outcome.get("error") for outcome in (erased, put, pruned)] == [None] * 3
    assert again["done"][1] == expected(erased=True)
    if state != "erase":  # else the user was erased before, and the catalogue kept its format
        (refused,) = run(checkouts[version], url, ["put"])
        assert "upgrade hotplate" in refused["error"]


async def catalogue_of(url: str) -> Any:  # noqa: ANN401 -- compared only
    store = connect(url)
    try:
        return await store.catalogue()
    finally:
        await store.close()
