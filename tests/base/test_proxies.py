"""Outgoing requests and the variables of proxies: one rule for each kind of request."""

import asyncio
import contextlib
import ssl
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

import hotplate
from hotplate.base.http1 import ConnectionPool, RequestFailed
from hotplate.base.proxies import Proxy, proxy_for
from hotplate.serve.access.oidc import TokenVerifier
from tests.support.redis_server import certify
from tests.support.stores import FIRST, release_ref
from tests.support.streams import listening

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://a.example", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://a.example", Proxy("proxy", 3128)),
        ({"https_proxy": "proxy:3128"}, "https://a.example:444/b", Proxy("proxy", 3128)),
        ({"HTTPS_PROXY": "http://u:p%40ss@proxy"}, "https://a.example", Proxy("proxy", 80, ("u", "p@ss"))),
        ({"HTTPS_PROXY": "http://[::2]:3128"}, "https://a.example", Proxy("::2", 3128)),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://a.example", None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://a.example", Proxy("proxy", 3128)),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".example,b"}, "https://a.example", None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "https://a.example", None),
        ({"HTTPS_PROXY": ""}, "https://a.example", None),
        *(({"HTTPS_PROXY": "http://proxy:1"}, f"https://{h}:8", None) for h in ("127.0.0.1", "localhost", "[::1]")),
    ],
)
def test_variables_name_the_proxy_of_a_url(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: Proxy | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(
    "value",
    [
        "socks5://secret@proxy:1",
        "https://secret@proxy",
        "http://",
        "http://user:secret/1@proxy:3128",
        "http://user:secret\N{ACCOUNT OF}@proxy:3128",
        "http://proxy:99999",
        "http://pröxy:3128",
    ],
)
def test_unsupported_proxy_is_refused_without_its_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ValueError, match="HTTPS_PROXY is not the URL of a proxy") as refused:
        hotplate.AsyncClient("https://shop.example")
    assert "secret" not in str(refused.value)


@contextlib.asynccontextmanager
async def proxying(answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> AsyncIterator[tuple[int, list[bytes]]]:
    """Run a proxy that answers so, and then opens a tunnel to the named local port; yields what it heard."""
    heard = list[bytes]()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append(head)
        writer.write(answer)
        if answer.startswith(b"HTTP/1.1 200"):
            port = int(head.split(b" ")[1].rpartition(b":")[2])
            there, to_there = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, to_there), pump(there, writer))

    async with listening(serve) as port:
        yield port, heard


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_requests_go_through_a_tunnel(
    tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop], *, secure: bool
) -> None:
    certify(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWER)
        writer.close()

    async def ask() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server if secure else None)
        async with listener, proxying() as (port, heard):
            target = listener.sockets[0].getsockname()[1]
            proxy = Proxy("127.0.0.1", port, ("name", "word"))
            pool = ConnectionPool("127.0.0.1", target, tls=client if secure else None, proxy=proxy)
            for _ in range(3):
                assert (await pool.request(REQUEST, 30)).body == b"ok"
            await pool.close()
            (head,) = heard
            assert head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1." % target)
            assert b"Proxy-Authorization: Basic " + b64encode(b"name:word") in head

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(ask())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 No\r\n\r\n",
        b"",
        b"nonsense\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 " + b"x" * 200_000,
    ],
    ids=["refused", "closed", "nonsense", "empty", "large"],
)
async def test_a_proxy_without_a_tunnel_is_a_failed_connect(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with listening(serve) as port:
        pool = ConnectionPool("a.example", 443, proxy=Proxy("127.0.0.1", port))
        with pytest.raises(RequestFailed, match="connect"):
            await pool.request(REQUEST, 30)
        await pool.close()


@pytest.mark.parametrize("is_closed", [False, True], ids=["timeout", "close"])
async def test_a_slow_proxy_is_left_when_its_tunnel_is_not_opened_in_time(
    monkeypatch: pytest.MonkeyPatch, *, is_closed: bool
) -> None:
    """A proxy that sends header after header, each in time, ties up neither a thread nor a socket."""
    monkeypatch.setattr("hotplate.base.http1.CONNECT_S", 300 if is_closed else 0.2)
    threads = threading.active_count()
    answering = asyncio.Event()
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        closed = asyncio.ensure_future(reader.read())
        while not closed.done():
            answering.set()
            writer.write(b"X-Wait: 1\r\n")
            await asyncio.wait([closed], timeout=0.01)
        await asyncio.gather(closed, return_exceptions=True)
        left.set()
        writer.close()

    async with listening(serve) as port, asyncio.timeout(60):
        pool = ConnectionPool("a.example", 443, proxy=Proxy("127.0.0.1", port))
        request = asyncio.ensure_future(pool.request(REQUEST, 300))
        await answering.wait()
        if is_closed:
            await pool.close()
        with pytest.raises(RequestFailed, match="connect"):
            await request
        await left.wait()
        assert threading.active_count() == threads
        await pool.close()


async def test_a_tunnel_to_an_ipv6_address_is_requested_in_brackets() -> None:
    async with proxying(b"HTTP/1.1 503 No\r\n\r\n") as (port, heard):
        pool = ConnectionPool("::1", 443, proxy=Proxy("127.0.0.1", port))
        with pytest.raises(RequestFailed, match="connect"):
            await pool.request(REQUEST, 30)
        await pool.close()
        assert heard[0].startswith(b"CONNECT [::1]:443 ")


async def look_up(host: str) -> None:
    store = hotplate.connect(f"cosmos+https://{host}:443/shop")
    try:
        await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=30)
    finally:
        await store.close()


async def call(host: str) -> None:
    async with hotplate.AsyncClient(f"https://{host}", timeout_s=30) as client:
        await client.popular()


async def verify(host: str) -> None:
    jwt = pytest.importorskip("jwt")
    token = jwt.encode({"sub": "x"}, "k" * 32, headers={"kid": "1"})
    await TokenVerifier(f"https://{host}", "shop").caller(token, b"")


@pytest.mark.parametrize("ask", [look_up, call, verify], ids=["lookup", "client", "issuer"])
async def test_each_kind_of_request_asks_the_proxy(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Awaitable[None]]
) -> None:
    async with proxying(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") as (port, heard):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        with pytest.raises(Exception):  # noqa: B017, PT011 -- of any kind; the proxy refuses
            await ask("a.invalid")
        assert heard
        assert all(head.startswith(b"CONNECT a.invalid:443 ") for head in heard)
        heard.clear()
        monkeypatch.setenv("NO_PROXY", "a.invalid")
        with pytest.raises(Exception):  # noqa: B017, PT011 -- as above; the host does not exist
            await ask("a.invalid")
        assert not heard
