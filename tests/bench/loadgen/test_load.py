"""Arrival times, users and options of a load."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hotplate.bench.errors import BenchMisused
from hotplate.bench.http import make_plan
from hotplate.bench.loadgen.load import Gets, InTurn, KeyDraw, Posts, RequestKeys, Uniform, dues
from hotplate.bench.options import HttpOptions


def test_poisson_arrivals_match_the_requested_rate_spread_and_seed() -> None:
    arrivals_s = np.array(list(dues(500, 200, seed=3)))
    assert len(arrivals_s) == pytest.approx(100_000, rel=0.02)
    gaps = np.diff(arrivals_s)
    assert gaps.mean() == pytest.approx(1 / 500, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)
    assert list(dues(50, 2, seed=3)) == list(dues(50, 2, seed=3))
    assert list(dues(50, 2, seed=3)) != list(dues(50, 2, seed=4))


def drawn(draw: KeyDraw, count: int, size: int = 40_000) -> Counter[str]:
    keys = RequestKeys([str(number) for number in range(count)], draw)
    return Counter(itertools.islice(keys, size))


def test_unknown_users_have_their_share() -> None:
    keys = RequestKeys(["a", "b"], Uniform(), unknown=0.25)
    users = list(itertools.islice(keys, 20_000))
    assert sum(key.startswith("unknown-") for key in users) == pytest.approx(5_000, rel=0.05)
    assert list(itertools.islice(keys, 100)) == users[:100]


def test_requests_go_over_the_wire_whole() -> None:
    keys = RequestKeys(["a/b ü"], InTurn())
    (get,) = itertools.islice(Gets("/v1/{key}?n=3", keys).rendered("h:1", {"X-Key": "1"}), 1)
    assert get.data == b"GET /v1/a%2Fb%20%C3%BC?n=3 HTTP/1.1\r\nHost: h:1\r\nX-Key: 1\r\n\r\n"
    (post,) = itertools.islice(Posts(keys, 2).rendered("h", {}), 1)
    head, _, body = post.data.partition(b"\r\n\r\n")
    assert body == '{"users":["a/b ü","a/b ü"],"n":10}'.encode()
    assert f"Content-Length: {len(body)}".encode() in head
    assert head.startswith(b"POST /v1/recommendations HTTP/1.1\r\nHost: h\r\n")
    (scored,) = itertools.islice(Posts(keys, 1, score=True).rendered("h", {}), 1)
    assert scored.data.startswith(b"POST /score HTTP/1.1\r\n")
    assert scored.data.endswith('\r\n\r\n{"data":[{"user":"a/b ü","n":10}]}'.encode())


def test_a_plan_keeps_no_secret(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\nb\n")
    options = HttpOptions(
        url="http://127.0.0.1:1",
        keys_file=tmp_path / "keys",
        headers=("X-API-Key: s3cret",),
        store="redis://me:s3cret@h:1/0",
    )
    plan = make_plan(options)
    assert plan.load.headers == {"X-API-Key": "s3cret"}
    assert "s3cret" not in str(plan.options.to_json())
    assert plan.load.samples
    assert make_plan(HttpOptions(url="http://127.0.0.1:1", path="/livez")).load.requests == Gets("/livez")


@pytest.mark.parametrize(
    "url",
    [
        "http://me:s3cret@h:1",
        "http://me:s3cret/x@h:1",
        "http://me:s3cret#x@h:1",
        "http://me:s3cret@h\u2100:1",
        "ftp://me:s3cret@h:1",
        "http://h:1/?sig=s3cret",
    ],
)
def test_a_url_with_a_secret_is_refused_without_showing_it(url: str) -> None:
    """It was sent in the field Host, and stored in the report."""
    with pytest.raises(BenchMisused, match="http://HOST:PORT") as refused:
        make_plan(HttpOptions(url=url, users=9))
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rate": "fast"}, "a rate such as"),
        ({"batch": "1", "find_max": True}, "--find-max and --batch"),
        ({"find_max": True, "slo": "p98=1ms"}, "is not a part of an objective"),
        ({"batch": "1,x"}, "whole numbers"),
        ({"batch": "1,x", "rate": "fast"}, "a rate such as"),  # sizes of batches are the last to be read
        ({"score": True}, "--score needs the sizes of batches"),
        ({"users": None}, "--users N"),
        ({"zipf": -1.0}, "exponent"),
        ({"headers": ["X-Key"]}, "NAME:VALUE"),
        ({"duration": "0s"}, "above zero"),
        ({"url": "http://h:99999"}, "Port out of range"),
    ],
)
def test_invalid_load_options_are_refused_with_a_message(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(BenchMisused, match=words):
        make_plan(HttpOptions(**({"url": "http://127.0.0.1:1", "users": 10} | wrong)))  # type: ignore[arg-type]  # wrong on purpose
