"""`hotplate.open_sync`: lists for programs without an event loop, from any thread, and after a fork."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hotplate
from tests.support import patience
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.redis_server import RedisServer
from tests.support.service import UNTIL_S, a_list, ids, published, until

LISTS = {"user:42": a_list("a", "b", "c"), "item:a": a_list("b", "c"), "popular:France": a_list("vin", "pain")}


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with a release."""
    publish(tmp_path)
    return f"file://{tmp_path}"


def publish(folder: Path) -> str:
    return published(folder, LISTS)


def uses(lists: hotplate.SyncLists) -> list[Callable[[], object]]:
    return [lists.popular, lambda: lists.personal("42"), lambda: lists.personal_many(["42"])]


def until_not_ready(lists: hotplate.SyncLists, why: str) -> None:
    """Wait until lists say why they are not ready: on a busy machine the store may not have been read at first."""

    def is_said() -> bool:
        with pytest.raises(hotplate.NotReady) as raised:
            lists.popular()
        return why in str(raised.value)

    until(is_said)


def threads() -> list[str]:
    """Return the names of the threads that lists of this process have."""
    return [thread.name for thread in threading.enumerate() if thread.name == "hotplate"]


def descriptors() -> set[str]:
    """Return what this process has open."""
    opened = set[str]()
    for link in Path("/proc/self/fd").iterdir():
        try:
            opened.add(f"{link.name} {link.readlink()}")
        except FileNotFoundError:  # the one that lists them
            continue
    return opened


def output_of(program: str, *arguments: object) -> str:
    """Run a program that must exit without warnings; return its output."""
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    done = run_process(*command, code=None, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_sync_methods_answer_like_async_methods(url: str) -> None:
    async def with_await() -> list[object]:
        async with hotplate.open(url, timeout_s=UNTIL_S) as lists:
            return [
                await lists.personal("42", n=2),
                await lists.personal("nobody", segment="France"),
                await lists.personal_many(["42", "nobody"], n=1, segment="France"),
                await lists.similar("a"),
                lists.popular(n=1, segment="France"),
            ]

    with hotplate.open_sync(url, timeout_s=UNTIL_S) as lists:
        assert asyncio.run(with_await()) == [
            lists.personal("42", n=2),
            lists.personal("nobody", segment="France"),
            lists.personal_many(["42", "nobody"], n=1, segment="France"),
            lists.similar("a"),
            lists.popular(n=1, segment="France"),
        ]
        assert b'hotplate_lookups_total{outcome="hit",source="personal"} 2.0' in lists.prometheus_text()
        assert lists.personal("42", n=1).items == [{"id": "a", "score": 1.0, "title": "Title a"}]
        assert ids(lists.personal("nobody", segment="France")) == ["vin", "pain"]
        assert lists.fold_in(["nothing like it"]).source == "popular"
        here = threading.get_ident()  # a query set of Django must not be read in a thread with a running loop
        assert ids(lists.fold_in(item for item in ["a"] if threading.get_ident() == here)) == ["b", "c"]


def test_sync_methods_refuse_invalid_arguments(url: str) -> None:
    with hotplate.open_sync(url) as lists:
        with pytest.raises(hotplate.StoreMisused, match="n must be at least 1"):
            lists.personal("42", n=0)
        with pytest.raises(hotplate.StoreMisused, match="recency is a factor"):
            lists.fold_in(["a"], recency=0)
        with pytest.raises(hotplate.StoreMisused, match="a weight is a number above 0"):
            lists.fold_in({"a": 10**400})
        with pytest.raises(hotplate.StoreMisused):
            lists.similar("")
        for user in (42, None, b"42"):
            with pytest.raises(hotplate.StoreMisused, match=f"is a string, and not of the type {type(user).__name__}"):
                lists.personal(user)  # type: ignore[arg-type]  # as in a program without type checks


def test_an_option_that_a_call_does_not_take_is_refused_by_name(url: str) -> None:
    with hotplate.open_sync(url) as lists:
        with pytest.raises(TypeError, match="this list takes else_, exclude, fields, list, per, where, not segment"):
            lists.similar("a", segment="France")  # type: ignore[call-arg]  # as in a program without type checks
        for call in (lists.personal_many, lists.fold_in):
            with pytest.raises(TypeError, match="takes else_, exclude, fields, list, per, segment, where, not fild"):
                call(["42"], fild="id")  # type: ignore[call-arg]  # as in a program without type checks
        with pytest.raises(TypeError, match="not after"):
            lists.fold_in(["a"], after="0")  # type: ignore[call-arg]  # as in a program without type checks


def test_any_number_of_items_may_be_asked_for(url: str) -> None:
    most = 10**30
    with hotplate.open_sync(url) as lists:
        assert ids(lists.personal("42", most)) == ids(lists.personal("42", 1000))
        assert ids(lists.similar("a", most)) == ids(lists.similar("a", 1000))
        assert ids(lists.popular(most)) == ids(lists.popular(1000))
        assert ids(lists.fold_in(["a"], most)) == ids(lists.fold_in(["a"], 1000))
        assert [ids(answer) for answer in lists.personal_many(["42"], most)] == [ids(lists.personal("42", 1000))]


@pytest.mark.usefixtures("patience")
def test_remote_lists_are_read_and_next_tier_replaces_an_unreachable_store(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    remote = redis_server.url("redis", "sync")
    published(remote, LISTS)
    local = publish(tmp_path)
    with hotplate.open_sync(remote, f"file://{tmp_path}", budget_s=UNTIL_S, timeout_s=UNTIL_S) as lists:
        assert (ids(lists.personal("42")), lists.similar("a").tier) == (["a", "b", "c"], "redis")
        with ThreadPoolExecutor(8) as callers:
            answers = list(callers.map(lists.personal, ["42"] * 200))
        assert {answer.source for answer in answers} == {"personal"}
        assert threads() == ["hotplate"]
        second = published(remote, LISTS)
        until(lambda: lists.personal("42").release == second)
    with hotplate.open_sync("redis://127.0.0.1:1/0", f"file://{tmp_path}", timeout_s=UNTIL_S) as lists:
        found_in = lists.personal("42")
        assert (found_in.tier, found_in.release) == ("file", local)


def test_resources_are_opened_on_first_use_and_released_after_the_last(url: str, tmp_path: Path) -> None:
    denied = tmp_path / "denied.txt"
    denied.write_text("item:b\n")
    before = descriptors()
    lists = hotplate.open_sync(url, timeout_s=UNTIL_S, deny_list=denied)
    assert (threads(), descriptors()) == ([], before)
    assert ids(lists.personal("42", 2)) == ["a", "c"]
    assert threads() == ["hotplate"]
    denied.write_text("item:a\n")
    until(lambda: ids(lists.personal("42", 2)) == ["b", "c"])
    lists.close()
    lists.close()
    assert (threads(), descriptors()) == ([], before)
    for use in (*uses(lists), lists.__enter__):
        with pytest.raises(hotplate.StoreMisused, match="are closed; open others"):
            use()


def test_a_string_is_refused_as_a_collection_of_ids(url: str) -> None:
    with hotplate.open_sync(url, timeout_s=UNTIL_S) as lists:
        for call in (
            partial(lists.personal_many, "42"),
            partial(lists.fold_in, "42"),
            partial(lists.personal, "1", exclude="42"),
        ):
            with pytest.raises(hotplate.StoreMisused, match="takes a collection, not the string '42'"):
                call()


def test_open_sync_raises_the_errors_of_open(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    with pytest.raises(hotplate.StoreMisused, match="known schemes"):
        hotplate.open_sync("ftp://nowhere")
    with pytest.raises(hotplate.StoreMisused, match="no store is named"):
        hotplate.open_sync()
    no_numbers: list[Any] = [None, "1", Decimal(1)]
    for budget_s in (float("nan"), float("inf"), 0, -1, *no_numbers):
        with pytest.raises(hotplate.StoreMisused, match="budget_s is a number of seconds above 0"):
            hotplate.open_sync(url, budget_s=budget_s)
    for timeout_s in (float("nan"), -1, *no_numbers):
        with pytest.raises(hotplate.StoreMisused, match="timeout_s is a number of seconds"):
            hotplate.open_sync(url, timeout_s=timeout_s)
    with pytest.raises(hotplate.StoreMisused, match=r"none\.txt"):
        hotplate.open_sync(url, deny_list=tmp_path / "none.txt")
    lists = hotplate.open_sync("redis://127.0.0.1:1/0", timeout_s=0.05)
    until_not_ready(lists, "cannot be reached")
    lists.close()
    with hotplate.open_sync(url, timeout_s=0.05) as lists:
        until_not_ready(lists, "nothing was ever published")
        release = publish(tmp_path)

        def answers() -> bool:
            with suppress(hotplate.NotReady):
                return lists.personal("42").release == release
            return False

        until(answers)


@pytest.mark.parametrize("scheme", ["file", "redis-that-refuses", "redis-that-is-silent"])
def test_first_call_without_a_live_release_keeps_its_deadline(tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if scheme == "redis-that-is-silent" else 1
        url = f"file://{tmp_path}" if scheme == "file" else f"redis://127.0.0.1:{port}/0"
        lists = hotplate.open_sync(url, timeout_s=0.2 if scheme == "redis-that-is-silent" else UNTIL_S)
        started = time.monotonic()
        with pytest.raises(hotplate.NotReady):
            lists.personal("42")
        assert time.monotonic() - started < UNTIL_S / 2
        lists.close()


def test_process_with_unclosed_lists_exits(url: str) -> None:
    program = "import hotplate, sys; lists = hotplate.open_sync(sys.argv[1], timeout_s=60)"
    assert output_of(f"{program}; print(lists.personal('42').source)", url) == "personal\n"


FORKING = f"""
{patience.INSTALL}
import os, sys, threading, time
import hotplate

lists = hotplate.open_sync(sys.argv[1], budget_s=60.0, timeout_s=60.0)
if "first" in sys.argv:
    first = lists.personal("42").release

def fork():
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    return not child

def wait_for_the_next():
    while lists.personal("42").release == first:
        time.sleep(0.01)

if fork():
    first = lists.personal("42").release
    assert [thread.name for thread in threading.enumerate()].count("hotplate") == 1
    if fork():
        assert lists.personal("42").release == first
        print("grandchild", flush=True)
        sys.stdin.readline()
        wait_for_the_next()
        lists.close()
        sys.exit()
    wait_for_the_next()
    sys.exit()
if "first" in sys.argv:
    wait_for_the_next()
print(lists.personal("42").release)
"""


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("scheme", ["file", "redis"])
@pytest.mark.parametrize("when", ["first", "later"])
def test_forked_process_follows_releases_before_and_after_use_by_parent(
    tmp_path: Path, redis_server: RedisServer, when: str, scheme: str
) -> None:
    url = f"file://{tmp_path}" if scheme == "file" else redis_server.url("redis", f"forked-{when}")
    published(url, LISTS)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORKING, url, when],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "grandchild\n"
        second = published(url, LISTS)
        out, err = process.communicate("go on\n", timeout=UNTIL_S)
    assert (process.returncode, out, err) == (0, f"{second}\n", "")
