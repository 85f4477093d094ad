"""The client against a real service that is killed, stopped, restarted, half-open or sheds load."""

import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import hotplate
from hotplate import client as module
from hotplate.stores.compression import MAX_LIST_BYTES
from hotplate.stores.encoding import SEPARATOR
from tests.support.faulty_proxy import (
    DROPPED,
    HELD,
    RELAY,
    RESET,
    SILENT,
    TRICKLED_BODY,
    TRICKLED_HEAD,
    FaultyProxy,
    answer,
    faulty_proxy,
)
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import Service, a_list, ids, published, running, until
from tests.support.waiting import until_true

ODD_IDS = ("a/b", "..", "ü", "50 %", "a?b#c", "a,b")
LISTS = {
    "user:42": a_list("a", "b", "c"),
    "item:a": a_list("b", "c"),
    "popular:": a_list("p1", "p2", "p3", "p4"),
    "popular:France": a_list("vin", "pain"),
    "popular:Spain": a_list("vino"),
    **{f"user:{name}": a_list("odd") for name in ODD_IDS},
}
# A deadline that is never met without an answer, and one that is always met with one.
SHORT_S = 0.15
AMPLE_S = 60.0
# How long a call may take that would never end if its deadline did not end it.
NEVER_S = 100.0
REFUSAL = b'{"type":"urn:hotplate:problem:overloaded","title":"x","status":503,"detail":"too many batches wait"}'
SILENCES = (SILENT, TRICKLED_HEAD, TRICKLED_BODY)
Open = Callable[..., Any]


class Blocking:
    """An AsyncClient that is called as a Client is."""

    def __init__(self, url: str, **options: Any) -> None:  # noqa: ANN401 -- whatever the client takes
        self._runner = asyncio.Runner()
        self._client = hotplate.AsyncClient(url, **options)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- a method of the client
        method = getattr(self._client, name)
        return lambda *arguments, **options: self._runner.run(method(*arguments, **options))

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


class Impatient:
    """A client with short deadlines by default."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401 -- either client
        self._client = client

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- a method of the client
        method = getattr(self._client, name)
        return lambda *arguments, **options: method(*arguments, **{"timeout_s": SHORT_S} | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "store"
    published(folder, LISTS)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running(folder) as service:
        yield service


@pytest.fixture
def proxy(service: Service) -> Iterator[FaultyProxy]:
    with faulty_proxy(service.port) as proxy:
        yield proxy


@pytest.fixture(params=[hotplate.Client, Blocking], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Make clients of one of the two kinds, and close them at the end."""
    clients = list[Any]()

    def make(url: str, timeout_s: float = AMPLE_S, **options: Any) -> Any:  # noqa: ANN401 -- either client
        clients.append(request.param(url, timeout_s=timeout_s, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def in_time(call: Callable[[], Any]) -> Any:  # noqa: ANN401 -- what the call returns
    """Return what a call does, or its error; fail if it does not end."""
    ended = list[Any]()

    def run() -> None:
        try:
            ended.append(call())
        except hotplate.ClientError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(NEVER_S)
    assert ended, "the call outlived its deadline"
    return ended[0]


def calls(client: Any) -> list[Callable[..., Any]]:  # noqa: ANN401 -- either client
    """Return a call of each method."""
    return [
        partial(client.recommendations, "42"),
        partial(client.recommendations, "42", segment="France"),
        partial(client.batch, ["42", "nobody"]),
        partial(client.similar, "a"),
        partial(client.popular),
        partial(client.fold_in, {"a": 2.0}, recency=0.5),
    ]


def learnt(connect: Open, url: str, **options: Any) -> Impatient:  # noqa: ANN401 -- of either client
    """Return a client that remembers the popular lists, with a short deadline from now on."""
    client = connect(url, **options)
    assert client.popular(segment="France").source == "popular"
    return Impatient(client)


@pytest.fixture
def client(proxy: FaultyProxy, connect: Open) -> Impatient:
    """A client that remembers the popular lists, through a proxy."""
    return learnt(connect, proxy.url)


def test_each_method_returns_the_service_answer(service: Service, connect: Open) -> None:
    client = connect(service.url)
    answer = client.recommendations("42", 2)
    assert (ids(answer), answer.source, answer.tier, answer.failure) == (["a", "b"], "personal", "file", None)
    assert answer.items[0] == {"id": "a", "score": 1.0, "title": "Title a"}
    assert answer.release == service.get("/v1/popular").json["release"]
    assert client.recommendations("42", 1, exclude=["a"], fields=("id",)).items == [{"id": "b"}]
    unknown = client.recommendations("nobody", segment="France")
    assert (ids(unknown), unknown.source) == (["vin", "pain"], "popular")
    assert (ids(client.similar("a")), client.similar("a").source) == (["b", "c"], "similar")
    assert ids(client.popular(2)) == ["p1", "p2"]


def test_batch_returns_an_answer_for_each_user(service: Service, connect: Open) -> None:
    client = connect(service.url)
    first, second = client.batch(["42", "nobody"], 1, fields=("id", "score"), segment="France", exclude=["a"])
    assert (ids(first), first.source, first.status) == (["b"], "personal", "ok")
    assert (ids(second), second.source, second.status) == (["vin"], "popular", "unknown")
    assert client.batch([]) == []


def test_any_id_reaches_the_service_unchanged(service: Service, connect: Open) -> None:
    client = connect(service.url)
    for name in ODD_IDS:
        assert ids(client.recommendations(name)) == ["odd"], name
    assert ids(client.recommendations("42", exclude=ODD_IDS[:-1])) == ["a", "b", "c", "p1", "p2", "p3", "p4"]


def test_invalid_request_is_refused_despite_a_remembered_list(service: Service, connect: Open) -> None:
    client = learnt(connect, service.url)
    with pytest.raises(hotplate.RequestRefused, match="400 bad-parameter") as refused:
        client.recommendations("42", segment="x" * 300, timeout_s=AMPLE_S)
    assert refused.value.status == 400
    for fields in (("id", " score"), ("id", "ü")):
        with pytest.raises(hotplate.RequestRefused):
            client.popular(fields=fields, timeout_s=AMPLE_S)
    for n in (0, 1001):
        with pytest.raises(hotplate.RequestRefused, match="400 bad-parameter: n "):
            client.popular(n, timeout_s=AMPLE_S)
    for name in ("exclud", "path"):  # an option of none, and a name inside the client
        with pytest.raises(TypeError, match=f"^a client's call got an unexpected .* '{name}'; it takes after,"):
            client.popular(**{name: ["a"]})
    for call in (
        partial(client.batch, "42"),
        partial(client.fold_in, "42"),
        partial(client.popular, exclude="42"),
        partial(client.batch, ["42"], exclude="42"),
        partial(client.popular, fields="42"),
    ):
        with pytest.raises(TypeError, match="takes a collection of strings, not the string '42'"):
            call()
    for user in (42, None):
        with pytest.raises(TypeError, match=f"strings, and not of the type {type(user).__name__}"):
            client.recommendations(user)


@pytest.mark.parametrize(
    "fault", [*SILENCES, DROPPED, RESET, b"not HTTP\r\n\r\n", answer(200, b"[" * 100_000), answer(500)]
)
def test_popular_list_replaces_a_failing_service_within_the_deadline(
    client: Impatient, proxy: FaultyProxy, connect: Open, fault: str | bytes
) -> None:
    ignorant = connect(proxy.url, SHORT_S)
    proxy.fault = fault
    single, french, batch, *more = (in_time(call) for call in calls(client))
    assert ids(french) == ["vin", "pain"]
    excluded = in_time(partial(client.recommendations, "42", segment="France", exclude=["vin", "pain"]))
    assert ids(excluded) == ["p1", "p2", "p3", "p4"]
    for replaced in (single, *batch, *more):
        assert (ids(replaced), replaced.source) == (["p1", "p2", "p3", "p4"], "memory")
        assert proxy.url in replaced.failure
    assert ids(in_time(partial(client.recommendations, "42", 2, exclude=["p1"], fields=("id",)))) == ["p2", "p3"]
    assert isinstance(in_time(partial(ignorant.recommendations, "42")), hotplate.ServiceUnavailable)
    proxy.fault = RELAY
    until(lambda: client.recommendations("42", timeout_s=AMPLE_S).source == "personal")


def test_restarted_service_is_used_again(folder: Path, connect: Open) -> None:
    with running(folder) as first:
        client = learnt(connect, first.url)
        assert client.recommendations("42", timeout_s=AMPLE_S).source == "personal"
        for process in (first.process.pid, *first.processes()):
            os.kill(process, signal.SIGKILL)
        first.process.wait()
        for call in calls(client):
            answers = in_time(call)
            assert all(
                answer.source == "memory" and answer.items
                for answer in (answers if isinstance(answers, list) else [answers])
            )
        assert isinstance(in_time(partial(connect(first.url, SHORT_S).popular)), hotplate.ServiceUnavailable)
    with running(folder, "--port", str(first.port)):
        until(lambda: client.recommendations("42", timeout_s=AMPLE_S).source == "personal")


@pytest.mark.parametrize("status", [429, 502, 503])
def test_answer_without_lists_is_replaced_with_the_reason(
    client: Impatient, proxy: FaultyProxy, connect: Open, status: int
) -> None:
    ignorant = connect(proxy.url)
    proxy.fault = answer(status, REFUSAL, Retry_After="3600")
    proxy.requests.clear()
    (replaced,) = client.batch(["42"], timeout_s=AMPLE_S)
    assert (replaced.source, replaced.status, len(proxy.requests)) == ("memory", "error", 1)
    assert f"{status} overloaded: too many batches wait" in replaced.failure
    assert isinstance(in_time(partial(ignorant.batch, ["42"], timeout_s=AMPLE_S)), hotplate.ServiceUnavailable)
    proxy.fault = RELAY
    assert client.batch(["42"], timeout_s=AMPLE_S)[0].source == "personal"


@pytest.mark.parametrize("fault", [DROPPED, RESET])
def test_failed_call_is_repeated_once_on_another_connection(client: Impatient, proxy: FaultyProxy, fault: str) -> None:
    proxy.requests.clear()
    connections = proxy.connections
    proxy.faults.append(fault)
    assert client.recommendations("42", timeout_s=AMPLE_S).source == "personal"
    assert proxy.requests == ["GET /v1/recommendations/42?n=10 HTTP/1.1"] * 2
    assert proxy.connections == connections + 1
    proxy.faults.extend([DROPPED, DROPPED])
    assert client.batch(["42"], timeout_s=AMPLE_S)[0].source == "memory"
    assert len(proxy.requests) == 4


def test_ids_of_an_iterator_are_left_out_of_a_remembered_list_too(client: Impatient, proxy: FaultyProxy) -> None:
    proxy.fault = DROPPED
    answer = client.recommendations("42", exclude=iter(["p1", "p3"]))
    assert (answer.source, ids(answer)) == ("memory", ["p2", "p4"])


def test_a_lazy_basket_is_read_in_the_callers_thread(service: Service) -> None:
    here = threading.get_ident()
    with hotplate.Client(service.url, timeout_s=AMPLE_S) as client:
        answer = client.fold_in(item for item in ["a"] if threading.get_ident() == here)
    assert (ids(answer), answer.source) == (["b", "c"], "fold-in")


def test_a_closed_client_raises_client_closed(service: Service) -> None:
    with hotplate.Client(service.url, timeout_s=AMPLE_S) as client:
        assert client.popular().items
    with pytest.raises(hotplate.ClientClosed, match="the client has been closed"):
        client.popular()


@pytest.mark.parametrize(
    "timeout_s", [0, 0.0, -1.0, float("nan"), float("inf"), None, "5", Decimal(5), np.array([5.0])], ids=repr
)
def test_an_invalid_time_limit_is_refused(service: Service, connect: Open, timeout_s: Any) -> None:  # noqa: ANN401 -- of any type
    message = re.escape(f"timeout_s must be a finite number of seconds above 0, not {timeout_s!r}")
    with pytest.raises(ValueError, match=message):
        connect(service.url, timeout_s=timeout_s)
    client = connect(service.url)
    with pytest.raises(ValueError, match=message):
        client.popular(timeout_s=timeout_s)
    with pytest.raises(ValueError, match="max_connections must be at least 1, not 0"):
        connect(service.url, max_connections=0)


def test_a_time_limit_may_be_a_number_of_numpy(service: Service, connect: Open) -> None:
    client = connect(service.url, timeout_s=np.float32(AMPLE_S))
    assert client.popular().source == "popular"
    assert client.batch(["42"], timeout_s=np.int64(AMPLE_S))[0].source == "personal"


async def test_an_async_client_refuses_calls_after_its_block_until_the_next_one(proxy: FaultyProxy) -> None:
    client = hotplate.AsyncClient(proxy.url, timeout_s=AMPLE_S)
    async with client:
        await client.popular()
        async with client:
            await client.popular()
        assert (await client.recommendations("42")).source == "personal", "an inner block has closed the client"
    connections = proxy.connections
    with pytest.raises(hotplate.ClientClosed, match="the client has been closed"):
        await client.popular()
    assert proxy.connections == connections
    async with client:
        assert (await client.popular()).source == "popular"
        await client.aclose()
        with pytest.raises(hotplate.ClientClosed, match="the client has been closed"):
            await client.popular()
        with pytest.raises(RuntimeError, match="the client has been closed"):
            await client.__aenter__()  # the end of the outer block would close the inner one's connections
    async with client:
        assert (await client.popular()).source == "popular"


async def test_calls_during_close_leave_no_connection() -> None:
    connected = asyncio.Event()
    closing = asyncio.Event()
    connections = 0
    ended = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, ended
        connections += 1
        with suppress(asyncio.IncompleteReadError):  # the client has closed the connection
            while True:
                await reader.readuntil(b"\r\n\r\n")
                connected.set()
                await closing.wait()
                writer.write(answer(200, b'{"user":"42","items":[],"source":"personal","release":"r","tier":"t"}'))
        writer.close()
        ended += 1

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(NEVER_S):
        port = server.sockets[0].getsockname()[1]
        client = hotplate.AsyncClient(f"http://127.0.0.1:{port}", timeout_s=AMPLE_S, max_connections=1)
        calls = [asyncio.create_task(client.recommendations("42")) for _ in range(2)]
        await connected.wait()  # the other call waits for its turn
        await client.aclose()
        closing.set()
        assert [call.source for call in await asyncio.gather(*calls)] == ["personal", "personal"]
        await until_true(lambda: ended >= connections)


async def test_a_call_that_fails_after_close_raises_client_closed() -> None:
    connected = asyncio.Event()
    closing = asyncio.Event()

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await closing.wait()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server, asyncio.timeout(NEVER_S):
        client = hotplate.AsyncClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=AMPLE_S)
        call = asyncio.create_task(client.recommendations("42"))
        await connected.wait()
        await client.aclose()
        closing.set()
        with pytest.raises(hotplate.ClientClosed):
            await call


async def test_late_call_is_sent_once(proxy: FaultyProxy) -> None:
    async with hotplate.AsyncClient(proxy.url, timeout_s=AMPLE_S) as client:
        await client.popular()
        await asyncio.gather(*(client.recommendations("42") for _ in range(4)))
        assert proxy.connections > 1
        proxy.fault = SILENT
        sent = 0
        for attempt in count():  # a call of a suspended process is late before it is sent
            path = f"/v1/recommendations/late-{attempt}?"
            assert (await client.recommendations(f"late-{attempt}", timeout_s=4 * SHORT_S)).source == "memory"
            await asyncio.sleep(SHORT_S)
            sent = sum(path in line for line in proxy.requests)
            if sent:
                break
        assert sent == 1


def test_popular_list_that_is_remembered_is_refreshed(
    tmp_path: Path, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    published(folder, LISTS)
    monkeypatch.setattr("hotplate.remembered_lists.REFRESH_S", 0.0)
    with running(folder) as service, faulty_proxy(service.port) as proxy:
        client = learnt(connect, proxy.url)
        published(folder, LISTS | {"popular:": a_list("new")})
        until(lambda: ids(client.popular(timeout_s=AMPLE_S)) == ["new"])
        client.recommendations("42", timeout_s=AMPLE_S)
        proxy.fault = DROPPED
        assert ids(client.recommendations("42")) == ["new"]


def test_an_answer_does_not_wait_for_a_silent_popular_list(proxy: FaultyProxy, connect: Open) -> None:
    client = connect(proxy.url, 10 * NEVER_S)
    proxy.faults.extend([RELAY, SILENT])
    assert in_time(partial(client.recommendations, "42", segment="France")).source == "personal"


async def test_popular_lists_are_remembered_also_if_no_call_was_ever_in_time(proxy: FaultyProxy) -> None:
    """Each call raised ServiceUnavailable, although popular lists were answered in time."""
    async with hotplate.AsyncClient(proxy.url, timeout_s=AMPLE_S) as client:
        proxy.faults.append(SILENT)
        with pytest.raises(hotplate.ServiceUnavailable, match="no answer in time"):
            await client.recommendations("42", timeout_s=SHORT_S)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        proxy.fault = DROPPED
        assert (await client.recommendations("42")).source == "memory"


async def test_popular_lists_are_remembered_after_any_answer(proxy: FaultyProxy) -> None:
    proxy.faults.extend([RELAY, HELD])
    async with hotplate.AsyncClient(proxy.url, timeout_s=AMPLE_S) as client:
        assert (await client.recommendations("42", segment="France")).source == "personal"
        await until_true(lambda: len(proxy.requests) >= 2)
        await client.recommendations("42", segment="Spain")  # while the lists of the first call are read
        proxy.released.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        assert [line for line in proxy.requests if "popular" in line] == [
            "GET /v1/popular?n=100&segment=France HTTP/1.1",
            "GET /v1/popular?n=100 HTTP/1.1",
        ]
        proxy.fault = DROPPED
        assert ids(await client.recommendations("42", segment="France")) == ["vin", "pain"]
        assert ids(await client.recommendations("42")) == ["p1", "p2", "p3", "p4"]


async def test_closing_stops_the_renewal_of_popular_lists(proxy: FaultyProxy) -> None:
    async with hotplate.AsyncClient(proxy.url, timeout_s=NEVER_S) as client:
        proxy.faults.extend([RELAY, SILENT])
        assert (await client.recommendations("42")).source == "personal"
        assert len(asyncio.all_tasks()) == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_an_empty_list_is_not_remembered(
    client: Impatient, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.fault = answer(200, b'{"items":[],"source":"popular","release":"r","tier":"t"}')
    monkeypatch.setattr("hotplate.remembered_lists.REFRESH_S", 0.0)
    client.recommendations("42", timeout_s=AMPLE_S)  # with a list that is due again
    proxy.fault = DROPPED
    replaced = client.recommendations("42", timeout_s=AMPLE_S)
    assert (replaced.source, bool(replaced.items)) == ("memory", True)


@pytest.mark.parametrize(("limit", "bytes_for_two"), [("MAX_ANSWER_BYTES", 10), ("MAX_LIST_BYTES", 20)])
def test_an_answer_without_an_end_is_cut_off(
    client: Impatient, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, limit: str, bytes_for_two: int
) -> None:
    monkeypatch.setattr(module, limit, 10)
    proxy.fault = TRICKLED_BODY
    answer = in_time(partial(client.recommendations, "42", timeout_s=AMPLE_S))
    assert (answer.source, bool(answer.items)) == ("memory", True)
    assert "more than 10 bytes" in answer.failure
    error = in_time(partial(client.batch, ["42", "43"], timeout_s=AMPLE_S))
    assert isinstance(error, hotplate.BatchTooLarge)
    assert f"2 users have more than {bytes_for_two} bytes" in str(error)


def test_the_longest_list_of_a_store_is_returned(tmp_path: Path, connect: Open) -> None:
    rows = [{"id": f"i{number}", "score": 1.0, "title": "x" * 4150} for number in range(1000)]
    missing_bytes = MAX_LIST_BYTES - len(SEPARATOR.join(map(orjson.dumps, rows)))
    rows[0]["title"] = "x" * (4150 + missing_bytes)
    items = SEPARATOR.join(map(orjson.dumps, rows))
    published(tmp_path / "store", {"user:42": items, "popular:": items.replace(b':"i', b':"p')})
    with running(tmp_path / "store") as service:
        client = connect(service.url)
        answers = [
            client.recommendations("42", 1000),
            client.recommendations("42", 1000, exclude=["i1"]),  # filled up
            *client.batch(["42"], 1000),
        ]
    assert [(answer.source, len(answer.items)) for answer in answers] == [("personal", 1000)] * 3


def test_remembered_list_is_unaffected_by_caller_changes(client: Impatient, proxy: FaultyProxy) -> None:
    proxy.fault = DROPPED
    for _ in range(2):
        answer = client.recommendations("42")
        assert (ids(answer), answer.source) == (["p1", "p2", "p3", "p4"], "memory")
        answer.items[0]["id"] = "changed"


@pytest.mark.parametrize("method", ["recommendations", "similar", "batch"])
def test_list_of_another_user_is_never_returned(client: Impatient, proxy: FaultyProxy, method: str) -> None:
    other = b'{"user":"43","item":"b","items":[{"id":"x","score":1.0}],"source":"personal","release":"r","tier":"t"}'
    proxy.fault = answer(200, b'{"release":"r","results":[%b]}' % other if method == "batch" else other)
    answers = getattr(client, method)(["42"] if method == "batch" else "42", timeout_s=AMPLE_S)
    (single,) = answers if isinstance(answers, list) else [answers]
    assert (ids(single), single.source) == (["p1", "p2", "p3", "p4"], "memory")
    assert "an answer for another" in single.failure


@pytest.mark.parametrize("field", ['"user":"43"', '"item":"b"', '"source":"personal"'])
def test_list_of_a_user_is_not_remembered_as_popular(proxy: FaultyProxy, connect: Open, field: str) -> None:
    client = connect(proxy.url)
    list_of_a_user = f'{{"items":[{{"id":"x"}}],"source":"popular","release":"r","tier":"t",{field}}}'
    proxy.fault = answer(200, list_of_a_user.encode())
    with pytest.raises(hotplate.ServiceUnavailable, match="an answer for another"):
        client.popular(timeout_s=AMPLE_S)
    if '"source"' not in field:
        with pytest.raises(hotplate.ServiceUnavailable, match="an answer for another"):
            client.fold_in(["a"], timeout_s=AMPLE_S)


def test_invalid_request_is_refused_without_a_read_of_the_popular_list(proxy: FaultyProxy, connect: Open) -> None:
    proxy.faults.extend([RELAY, SILENT])
    client = connect(proxy.url)
    with pytest.raises(hotplate.RequestRefused, match="400 bad-parameter"):
        client.recommendations("42", 0)
    assert len(proxy.requests) == 1


def test_a_key_is_sent_and_never_shown(proxy: FaultyProxy, connect: Open) -> None:
    echo = b'{"type":"urn:hotplate:problem:unknown-key","detail":"the key s3cret-key is not known"}'
    client = connect(proxy.url, key="s3cret-key")
    proxy.fault = answer(401, echo)
    with pytest.raises(hotplate.RequestRefused, match="401 unknown-key") as refused:
        client.popular()
    assert "s3cret" not in f"{refused.value}{client!r}"
    proxy.fault = RELAY
    client = learnt(connect, proxy.url, key="s3cret-key")
    proxy.fault = answer(401, echo)
    popular = client.popular(timeout_s=AMPLE_S)
    assert popular.source == "memory"
    assert "s3cret" not in popular.failure
    for url in ("http://name:s3cret@shop.example", "ftp://shop.example", "http://shop.example?key=s3cret"):
        with pytest.raises(ValueError, match="looks like") as wrong:
            connect(url)
        assert "s3cret" not in str(wrong.value)
    with pytest.raises(ValueError, match="xn--"):
        connect("http://bücher.example")
    for key in ("s3cret\n", "s3cret "):
        with pytest.raises(ValueError, match="a header cannot have") as wrong:
            connect(proxy.url, key=key)
        assert "s3cret" not in str(wrong.value)


def test_popular_list_replaces_the_refusal_of_a_proxy(
    proxy: FaultyProxy, connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    client = connect("http://shop.example")
    proxy.fault = answer(200, b'{"items":[{"id":"p1"}],"source":"popular","release":"r","tier":"t"}')
    assert ids(client.popular()) == ["p1"]
    proxy.fault = answer(407)
    assert client.popular().source == "memory"


@pytest.mark.parametrize("status", [407, 502])
def test_a_refused_tunnel_is_an_unavailable_service(
    proxy: FaultyProxy, connect: Open, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url)
    proxy.fault = answer(status)
    with pytest.raises(hotplate.ServiceUnavailable, match=str(status)):
        connect("https://shop.example").popular()


def test_hanging_dns_lookup_costs_only_the_deadline(monkeypatch: pytest.MonkeyPatch, connect: Open) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: [][over.wait() :])
    client = connect("http://shop.example", 0.02)
    for _ in range(5):
        assert isinstance(in_time(client.popular), hotplate.ServiceUnavailable)
    over.set()


def test_a_tls_handshake_ends_with_the_deadline_and_names_are_looked_up(proxy: FaultyProxy, connect: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        encrypted = connect(f"https://127.0.0.1:{silent.getsockname()[1]}", SHORT_S)
        assert isinstance(in_time(encrypted.popular), hotplate.ServiceUnavailable)
    assert connect(proxy.url.replace("127.0.0.1", "localhost")).popular().source == "popular"
    assert isinstance(in_time(connect("http://nowhere.invalid").popular), hotplate.ServiceUnavailable)


async def test_a_tls_handshake_that_meets_its_deadline_closes_its_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        closed = 0
        async with hotplate.AsyncClient(url, timeout_s=SHORT_S) as client:
            while closed < 3:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(SHORT_S / 4):  # amid the handshake
                        await client.popular()
                with suppress(BlockingIOError):  # a busy client may not have connected each time
                    accepted, _ = silent.accept()
                    accepted.settimeout(NEVER_S)
                    with accepted:
                        while await asyncio.to_thread(accepted.recv, 65_536):
                            pass
                    closed += 1


async def test_cancelled_task_leaves_a_shared_client_connection_usable(proxy: FaultyProxy) -> None:
    async with hotplate.AsyncClient(proxy.url, timeout_s=AMPLE_S, max_connections=1) as client:
        assert (await client.popular()).source == "popular"
        proxy.faults.append(SILENT)
        task = asyncio.create_task(client.recommendations("42"))
        await until_true(lambda: "recommendations" in proxy.requests[-1])
        task.cancel()
        answers = await asyncio.gather(*(client.recommendations("42") for _ in range(5)))
    assert {answer.source for answer in answers} == {"personal"}


FORKING_AMID_A_CALL = """
import os, sys, threading, hotplate
client = hotplate.Client(sys.argv[1], timeout_s=60)
forked = threading.Event()

def call():
    while not forked.is_set():
        client.recommendations("42")

for _ in range(4):
    threading.Thread(target=call).start()
for _ in range(5):
    if not os.fork():
        os.write(1, client.recommendations("42").source.encode() + b"\\n")
        os._exit(0)
    os.wait()
forked.set()
"""


def test_a_process_forked_amid_first_calls_answers(proxy: FaultyProxy) -> None:
    ignored = "ignore:This process:DeprecationWarning"  # Python 3.12 and later warn of a fork beside a thread
    command = [sys.executable, "-W", ignored, "-c", FORKING_AMID_A_CALL, proxy.url]
    done = run_process(*command, code=None, timeout=NEVER_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "personal\n" * 5, "")


def test_a_client_loads_neither_the_service_nor_a_store() -> None:
    program = "import sys, hotplate; hotplate.Client('http://127.0.0.1:1'); hotplate.AsyncClient('http://127.0.0.1:1')"
    done = run_process(sys.executable, "-c", f"{program}; print(*sys.modules)", cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "httpcore2" in loaded
    assert not loaded & {"aiohttp", "lmdb", "click", "rich", "uvloop", "orjson", "msgspec", "numpy"}
    assert not {name for name in loaded if re.match(r"hotplate\.(serve|stores|cli|offline|bench)(\.|$)", name)}
