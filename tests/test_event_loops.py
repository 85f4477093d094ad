"""Public asynchronous objects on several event loops: each works, or refuses with an error of the library."""

import asyncio
import gc
import inspect
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import hotplate
from tests.support.service import UNTIL_S, Service, a_list, ids, published, running, until
from tests.support.stores import publish

if TYPE_CHECKING:
    from tests.support.cosmos_account import Account
    from tests.support.redis_server import RedisServer

# As in a program that does not close its connections: asyncio warns of those of a closed loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect the connections of closed loops here, where their warnings are expected, and not during a later test."""
    gc.freeze()  # the collection looks only at what the test made
    yield
    gc.collect()  # what is frozen stays so, as tests/conftest.py leaves it


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    published(tmp_path / "store", {"user:1": a_list("a")})
    with running(tmp_path / "store") as service:
        yield service


def test_every_public_asynchronous_class_is_tried_here() -> None:
    """Bases of stores are in hotplate.stores.store."""
    asynchronous = set[str]()
    for name in hotplate.__all__:
        public = getattr(hotplate, name)
        is_class = inspect.isclass(public) and not getattr(public, "_is_protocol", False)
        if (
            is_class
            and public.__module__ != "hotplate.stores.store"
            and any(inspect.iscoroutinefunction(member) for _, member in inspect.getmembers(public))
        ):
            asynchronous.add(name)
    assert asynchronous == {"AsyncClient", "Lists"}


def test_lists_may_be_entered_again_on_another_loop(tmp_path: Path) -> None:
    store = tmp_path / "store"
    lists = hotplate.open(f"file://{store}", timeout_s=UNTIL_S)

    async def visit() -> list[str]:
        async with lists:
            return ids(await lists.personal("1"))

    for item in ("old", "new"):
        published(store, {"user:1": a_list(item)})
        assert asyncio.run(visit()) == [item]
        assert b"hotplate_release_info" in lists.prometheus_text()


def test_lists_that_are_in_use_are_refused_on_another_loop(tmp_path: Path) -> None:
    published(tmp_path / "store", {"user:1": a_list("a")})
    lists = hotplate.open(f"file://{tmp_path}/store", timeout_s=UNTIL_S)

    async def enter() -> None:
        async with lists:
            pass

    async def leave() -> None:
        await lists.__aexit__(None, None, None)

    async def call() -> None:
        await lists.personal("1")

    async def use() -> None:
        async with lists:
            for other in (enter, leave, call):
                with pytest.raises(hotplate.StoreMisused):
                    await asyncio.to_thread(lambda: asyncio.run(other()))  # noqa: B023 -- awaited here
                with pytest.raises(hotplate.StoreMisused):
                    await enter()
            assert (await lists.personal("1")).source == "personal"

    asyncio.run(use())


def test_lists_that_failed_to_open_may_be_opened_later(tmp_path: Path) -> None:
    lists = hotplate.open(f"file://{tmp_path}/store", timeout_s=0.0)

    async def cancelled() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0), lists:
                raise AssertionError("it was not cancelled")

    async def visit() -> str:
        async with lists:
            await lists.reader.wait_until_ready(30)
            return (await lists.personal("1")).source

    asyncio.run(cancelled())
    published(tmp_path / "store", {"user:1": a_list("a")})
    assert asyncio.run(visit()) == "personal"


def test_a_client_works_on_each_loop(service: Service) -> None:
    client = hotplate.AsyncClient(service.url, timeout_s=30)

    async def ask() -> str:
        return (await client.recommendations("1")).source

    async def ask_and_close() -> str:
        async with client:
            return await ask()

    for _ in range(3):
        assert asyncio.run(ask()) == "personal"
        assert asyncio.run(ask_and_close()) == "personal"

    async def ask_elsewhere() -> list[str]:
        here = await ask()
        elsewhere = await asyncio.to_thread(lambda: asyncio.run(ask()))
        return [here, elsewhere, await ask()]

    assert asyncio.run(ask_elsewhere()) == ["personal"] * 3
    assert threading.active_count() < 20


@pytest.mark.parametrize("closes", [False, True], ids=["open", "closed"])
def test_a_client_with_a_loop_for_each_call_remembers_and_renews_popular_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, closes: bool
) -> None:
    published(tmp_path / "store", {"user:1": a_list("a"), "popular:": a_list("old")})
    with running(tmp_path / "store") as service:
        client = hotplate.AsyncClient(service.url, timeout_s=30)
        monkeypatch.setattr("hotplate.remembered_lists.REFRESH_S", 0.0)

        async def ask() -> hotplate.Answer:
            if not closes:
                return await client.recommendations("1")
            async with client:
                return await client.recommendations("1")

        def remembered() -> list[str]:
            """Return the ids of the popular list that replaces an answer in an outage."""
            with monkeypatch.context() as outage:
                outage.setattr(client, "_url", "http://127.0.0.1:9")
                answer = asyncio.run(ask())
            assert answer.source == "memory"
            return ids(answer)

        for _ in range(3):
            assert asyncio.run(ask()).source == "personal"
        assert remembered() == ["old"]

        monkeypatch.setattr("hotplate.remembered_lists.REFRESH_AGAIN_S", 0.0)
        published(tmp_path / "store", {"user:1": a_list("b"), "popular:": a_list("new")})
        until(lambda: asyncio.run(ask()) and remembered() == ["new"], "the list was not renewed")


@pytest.fixture(params=["file", "redis", "cosmos"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/store"
    elif request.param == "cosmos":
        account: Account = request.getfixturevalue("cosmos_http")
        yield account.url(secrets.token_hex(4), ru="30000")
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        request.getfixturevalue("patience")
        yield server.url("redis", secrets.token_hex(4))


def test_a_store_works_on_another_loop_or_refuses(url: str) -> None:
    store = hotplate.connect(url)

    async def use() -> None:
        live = (await store.catalogue()).live
        if live is None:
            live = await publish(store)
        release = (await store.catalogue()).find(live).ref
        (row,) = await store.get_many(release, ["user:1"])
        assert isinstance(row, bytes)

    with asyncio.Runner() as first:
        first.run(use())
        for act in (use, store.close):
            try:
                with asyncio.Runner() as other:
                    other.run(act())
            except hotplate.StoreMisused as error:
                assert "another event loop" in str(error)  # noqa: PT017 -- it may work as well
        first.run(store.close())
    asyncio.run(store.close())


async def test_a_store_in_use_works_on_the_running_loop_of_another_thread_or_refuses(url: str) -> None:
    store = hotplate.connect(url)
    release = await publish(store)
    ref = (await store.catalogue()).find(release).ref

    async def publish_elsewhere() -> None:
        await publish(store)

    async def read() -> None:
        assert isinstance((await store.get_many(ref, ["user:1"]))[0], bytes)

    async def scan() -> None:
        assert [row async for row in store.scan(ref)]

    async def use_elsewhere(use: Callable[[], Coroutine[Any, Any, None]]) -> None:
        here = asyncio.create_task(read())
        with suppress(hotplate.StoreMisused):  # instead of an endless wait for the loop of the connections
            await asyncio.to_thread(lambda: asyncio.run(asyncio.wait_for(use(), UNTIL_S)))
        await here
        await read()

    for use in (read, scan, publish_elsewhere):
        await use_elsewhere(use)
    if not store.is_local:  # files are closed for all loops
        await use_elsewhere(store.close)
    await store.close()
