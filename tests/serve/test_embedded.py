"""hotplate as a library: its names, its lists, and what docs/integration.md shows of frameworks and notebooks."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import hotplate
from tests.support.examples import examples
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import UNTIL_S, a_list, ids, publish_lists, published, until

GUIDE = "docs/integration.md"
*_, NOTEBOOK = examples(GUIDE, "The lists in a Python program")
(FLASK,) = examples(GUIDE, "Flask")

FLASK_SERVED = """
def get(query):
    response = app.test_client().get("/?" + query)
    assert response.status_code == 200
    return [item["id"] for item in response.json]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with a release."""
    publish(tmp_path / "store", "a", "b")
    return tmp_path / "store"


def publish(folder: Path, *ids: str) -> None:
    published(folder, {"user:42": a_list(*ids)})


def on(folder: Path, example: str) -> str:
    """Return an example that reads the store in *folder*, on a busy machine."""
    assert '"file:///var/lib/hotplate"' in example
    return example.replace('"file:///var/lib/hotplate"', f'"file://{folder}", timeout_s={UNTIL_S}')


async def test_notebook_with_a_running_loop_works(tmp_path: Path) -> None:
    await publish_lists(tmp_path, {"user:42": a_list("a", "b")})
    *lines, last = on(tmp_path, NOTEBOOK).strip().splitlines()
    cell: dict[str, Any] = {}
    exec("\n".join(lines), cell)  # the test is that it runs as it stands
    with cell["lists"]:
        assert [item["id"] for item in eval(last, cell)] == ["a", "b"]


@pytest.mark.parametrize("url", ["file:///nonexistent", "redis://127.0.0.1:1/0"])
def test_flask_starts_and_answers_without_a_live_release(url: str) -> None:
    program = FLASK.replace("file:///var/lib/hotplate", url) + FLASK_SERVED + "print(get(''), get('user=42'))"
    done = run_process(sys.executable, "-c", program, code=None, cwd=ROOT, timeout=UNTIL_S)
    assert (done.returncode, done.stdout) == (0, "[] []\n"), done.stderr


def test_flask_serves_the_live_release_in_every_forked_gunicorn_worker(folder: Path, tmp_path: Path) -> None:
    before_the_fork = "lists.personal('42')\n"
    worker = "\n\n@app.get('/worker')\ndef worker():\n    import os\n    return [os.getpid(), *home()]\n"
    (tmp_path / "shop.py").write_text(on(folder, FLASK) + worker + before_the_fork)
    log = tmp_path / "gunicorn.log"
    options = ["--preload", "--workers", "2", "--threads", "4", "--bind", "127.0.0.1:0", "--log-file", str(log)]
    command = [sys.executable, "-m", "gunicorn", *options, "--no-control-socket", "shop:app"]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        try:
            until(lambda: log.exists() and "Listening at" in log.read_text())
            match = re.search(r"Listening at: (\S+)", log.read_text())
            assert match is not None
            seen = dict[int, list[str]]()

            def ask() -> dict[int, list[str]]:
                with urlopen(f"{match[1]}/worker?user=42", timeout=UNTIL_S) as response:
                    pid, *items = json.load(response)
                seen[pid] = [item["id"] for item in items]
                return seen

            until(lambda: len(ask()) == 2)
            assert list(seen.values()) == [["a", "b"]] * 2
            publish(folder, "c")
            until(lambda: list(ask().values()) == [["c"]] * 2)
        finally:
            process.terminate()
    assert (process.returncode, "Traceback" in log.read_text()) == (0, False)


LISTS = {"user:42": a_list("a", "b", "c"), "item:a": a_list("b", "c"), "popular:France": a_list("vin", "pain")}


def modules_after(program: str) -> set[str]:
    """Return the modules loaded after *program* ran in a new Python process."""
    done = run_process(sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)", cwd=ROOT)
    return set(done.stdout.split())


def test_importing_hotplate_loads_nothing_and_opening_lists_no_web_framework() -> None:
    rooms = {f"hotplate.{room}" for room in ("serve", "stores", "offline", "bench")}
    heavy = {"aiohttp", "numpy", "lmdb", "orjson", "click", "rich", "prometheus_client", "redis", "uvloop"}
    assert not modules_after("import hotplate") & (rooms | heavy)
    needed = {"lmdb", "orjson"}
    assert not modules_after("import hotplate; hotplate.open('file:///nowhere')") & (heavy - needed)


def test_public_names_are_complete() -> None:
    for name in hotplate.__all__:
        assert getattr(hotplate, name) is getattr(hotplate, name)
    assert dir(hotplate) == sorted(hotplate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hotplate.nothing  # type: ignore[attr-defined]  # noqa: B018 -- that is the test


def test_lists_are_usable_only_while_open_and_on_their_event_loop(tmp_path: Path) -> None:
    lists = hotplate.open(f"file://{tmp_path}", timeout_s=UNTIL_S)

    async def uses() -> None:
        for use in (lists.personal("42"), lists.personal_many(["42"]), lists.similar("a"), lists.fold_in(["a"])):
            with pytest.raises(hotplate.StoreMisused, match=r"hotplate\.open_sync"):
                await use
        with pytest.raises(hotplate.StoreMisused, match=r"hotplate\.open_sync"):
            lists.popular()

    published(tmp_path, LISTS)
    asyncio.run(uses())
    with asyncio.Runner() as runner:
        runner.run(lists.__aenter__())
        asyncio.run(uses())
        with pytest.raises(hotplate.StoreMisused, match="on the event loop that opened them"):
            lists.popular()
        assert ids(runner.run(lists.personal("42"))) == ["a", "b", "c"]
        runner.run(lists.__aexit__(None, None, None))
        runner.run(uses())


async def test_lists_can_be_entered_again_after_a_missing_deny_list(tmp_path: Path) -> None:
    await publish_lists(tmp_path / "store", LISTS)
    deny_list = tmp_path / "denied"
    deny_list.write_text("")
    lists = hotplate.open(f"file://{tmp_path}/store", timeout_s=UNTIL_S, deny_list=deny_list)
    async with lists:
        pass

    deny_list.unlink()
    with pytest.raises(hotplate.StoreMisused, match="denied"):
        await lists.__aenter__()

    deny_list.write_text("item:a\n")
    async with lists:
        assert ids(await lists.personal("42", n=2)) == ["b", "c"]
