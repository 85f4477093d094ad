"""Requests as they leave the client: signed by the documentation's formula, dated, and free of what needs escaping."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.stores.cosmos.requests import KeySigner, RequestBuilder
from hotplate.stores.cosmos.url import EMULATOR_KEY, Address
from hotplate.stores.errors import StoreMisused
from tests.support.clock import FakeClock
from tests.support.cosmos_server import signed

IDS = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,40}", fullmatch=True)
KEYS = st.binary(min_size=1, max_size=200).map(lambda raw: base64.b64encode(raw).decode())


def address(key: str) -> Address:
    return Address("cosmos://a/d", "https://a:443", "d", key=key)


def requests(clock: FakeClock, key: str = EMULATOR_KEY) -> RequestBuilder:
    return RequestBuilder("host:1", "d", KeySigner(address(key)), clock)


def understood(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode("ascii").split("\r\n")
    return line, dict(line.split(": ", 1) for line in lines), body


@given(container=IDS, name=IDS, key=KEYS)
def test_a_read_is_signed_as_documented(container: str, name: str, key: str) -> None:
    clock = FakeClock()
    line, headers, body = understood(requests(clock, key).item(b"GET", container, name, b"x: y\r\n"))
    wanted = signed("GET", "docs", f"dbs/d/colls/{container}/docs/{name}", now=clock.now, key=key)
    assert line == f"GET /dbs/d/colls/{container}/docs/{name}/ HTTP/1.1"
    assert {"authorization": headers["authorization"], "x-ms-date": headers["x-ms-date"]} == wanted
    assert headers["x-ms-documentdb-partitionkey"] == f'["{name}"]'
    assert headers["x"] == "y"
    assert headers["host"] == "host:1"
    assert body == b""


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ü", 'a"b', "a%2Fb", "a\r\nhost: b", ".", "..", "x" * 1024, "a\n"])
def test_name_that_needs_escaping_is_refused(clock: FakeClock, name: str) -> None:
    builder = requests(clock)
    with pytest.raises(StoreMisused):
        builder.item(b"GET", "c", name)
    with pytest.raises(StoreMisused):
        builder.item(b"POST", name, "a")


@pytest.mark.parametrize("key", ["", "not base64!", "====", "abc"])
def test_invalid_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(StoreMisused, match="HOTPLATE_COSMOS_KEY") as error:
        KeySigner(address(key))
    assert not key or f" {key}" not in str(error.value)
