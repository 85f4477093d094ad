"""hotplate as a library: the public names, the lists that `open` gives, and the examples of the docs as they are."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hotplate
from hotplate.stores.file.store import LmdbStore
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer
from tests.support.service import a_list, publish_lists, publish_to

LISTS = {"user:42": a_list("a", "b", "c"), "item:a": a_list("b", "c"), "popular:France": a_list("vin", "pain")}


def ids(found: hotplate.Recommendations) -> list[str]:
    return [item["id"] for item in found.items]


def examples(document: str) -> list[str]:
    """Return the code blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def modules_after(program: str) -> set[str]:
    """Return the modules that are loaded after *program* ran in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return set(done.stdout.split())


def test_importing_hotplate_loads_nothing_and_opening_lists_no_web_framework() -> None:
    rooms = {f"hotplate.{room}" for room in ("serve", "stores", "offline", "bench")}
    heavy = {"aiohttp", "numpy", "lmdb", "orjson", "typer", "rich", "prometheus_client", "redis", "uvloop"}
    assert not modules_after("import hotplate") & (rooms | heavy)
    needed = {"lmdb", "orjson"}
    assert not modules_after("import hotplate; hotplate.open('file:///nowhere')") & (heavy - needed)


def test_every_public_name_is_there_and_no_other() -> None:
    for name in hotplate.__all__:
        assert getattr(hotplate, name) is getattr(hotplate, name)
    assert dir(hotplate) == sorted(hotplate.__all__)
    assert re.match(r"\d+\.\d+", hotplate.__version__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hotplate.nothing  # type: ignore[attr-defined]  # noqa: B018 -- that is the test
    assert issubclass(hotplate.NotReady, hotplate.StoreError)


async def test_lists_are_decoded_cut_and_name_where_they_came_from(tmp_path: Path) -> None:
    release = await publish_lists(tmp_path, LISTS)
    async with hotplate.open(f"file://{tmp_path}") as lists:
        found = await lists.personal("42", n=2)
        assert found.items[0] == {"id": "a", "score": 1.0, "title": "Title a"}
        assert (ids(found), found.source, found.release, found.tier) == (["a", "b"], "personal", release, "file")
        assert (await lists.personal("nobody")).source == "popular"
        assert ids(await lists.personal("nobody", segment="France")) == ["vin", "pain"]
        assert ids(await lists.similar("a")) == ["b", "c"]
        assert ids(lists.popular(n=1)) == ["p1"]
        assert [(ids(one), one.source) for one in await lists.personal_many(["42", "nobody"], n=1)] == [
            (["a"], "personal"),
            (["p1"], "popular"),
        ]
        (one,) = await lists.personal_many(["nobody"], segment="France")
        assert ids(one) == ["vin", "pain"]
        for wrong in (lists.personal("x" * 257), lists.similar(""), lists.personal("42", n=0)):
            with pytest.raises(hotplate.StoreMisused):
                await wrong


async def test_open_reports_what_is_wrong_where_nothing_is_served_in_time_and_waits_for_what_comes(
    tmp_path: Path,
) -> None:
    with pytest.raises(hotplate.NotReady, match="hotplate publish"):
        async with hotplate.open(f"file://{tmp_path}", timeout_s=0.05):
            raise AssertionError("nothing is live")
    with pytest.raises(hotplate.NotReady, match="cannot be reached"):
        async with hotplate.open("redis://127.0.0.1:1/0", timeout_s=0.5):
            raise AssertionError("nobody is there")
    with pytest.raises(hotplate.StoreMisused, match="known schemes"):
        hotplate.open("ftp://nowhere")
    with pytest.raises(hotplate.StoreMisused, match="no store is named"):
        hotplate.open()
    publishing = asyncio.create_task(publish_lists(tmp_path, LISTS))
    async with hotplate.open(f"file://{tmp_path}") as lists:
        assert lists.popular().release == await publishing


async def test_lists_follow_the_live_release_and_the_next_tier_answers_for_a_store_that_is_gone(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    url = redis_server.url("redis", "library")
    await publish_to(url, LISTS)
    local = await publish_lists(tmp_path, {"user:42": a_list("local")})
    async with hotplate.open(url, f"file://{tmp_path}", budget_s=1.0) as lists:
        assert (await lists.personal("42")).tier == "redis"
        second = await publish_to(url, {"user:42": a_list("second")})
        async with asyncio.timeout(60):
            while (await lists.personal("42")).release != second:
                await asyncio.sleep(0.01)
    async with hotplate.open("redis://127.0.0.1:1/0", f"file://{tmp_path}") as lists:
        found = await lists.personal("42")
        assert (ids(found), found.tier, found.release) == (["local"], "file", local)


@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_the_first_example_runs_as_it_is_documented(tmp_path: Path, redis_server: RedisServer, document: str) -> None:
    urls = redis_server.url("redis", Path(document).stem), f"file://{tmp_path}/store"
    release = asyncio.run(publish_to(urls[0], LISTS))
    asyncio.run(publish_to(urls[1], LISTS))
    program = examples(document)[0]
    for documented, url in zip(("redis://cache/0", "file:///var/lib/hotplate"), urls, strict=True):
        assert documented in program
        program = program.replace(documented, url)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.stdout.splitlines()[0] == f"personal {release} redis"
    assert done.stdout.splitlines()[1:] == ["a 1.0 Title a", "b 0.5 Title b", "c 0.3333333333333333 Title c"]


def test_a_release_on_disk_is_closed_with_the_lists(tmp_path: Path) -> None:
    async def use() -> None:
        await publish_lists(tmp_path, LISTS)
        for _ in range(3):  # LMDB refuses to open in one process what is open there already
            async with hotplate.open(f"file://{tmp_path}") as lists:
                await lists.personal("42")
        store = LmdbStore(tmp_path)
        assert (await store.catalogue()).live is not None
        await store.close()

    asyncio.run(use())
