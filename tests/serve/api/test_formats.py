"""The forms of answers: which one a caller gets, that all say the same, and how large ones are sent."""

import asyncio
import csv
import gzip
import http.client
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import msgspec
import pytest
import zstandard

from hotplate.serve.api.formats import content_coding, media_type
from hotplate.serve.api.parameters import ARROW, BATCH_MEDIA, CSV, JSON, LIST_MEDIA, MSGPACK
from hotplate.serve.problems import Problem
from tests.support.paths import ROOT
from tests.support.service import Answer, Service, a_list, publish_lists, running

pa: Any = import_module("pyarrow")  # it comes without types

ODD = ["a,b", 'quo"te', "\\", "é", "😀", "two\r\nlines", "\n", "'", "=1+1", "\x00"]
MANY = [str(number) for number in range(2000)]
LISTS = {"user:42": a_list(*ODD), "user:bare": b'{"id":"x","score":0.1}', "item:7": a_list("x")}
LISTS |= {f"user:{user}": a_list(*(f"{user}-{rank}" for rank in range(10))) for user in MANY[100:]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("formats") / "store"
    asyncio.run(publish_lists(folder, LISTS))
    with running(folder) as running_service:
        yield running_service


def post(service: Service, media: str, users: list[str], **headers: str) -> Answer:
    body = json.dumps({"users": users, "n": 10}).encode()
    answer = service.request("POST", "/v1/recommendations", body, Accept=media, **headers)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].partition(";")[0] == media
    return answer


def rows_of(media: str, body: bytes) -> list[dict[str, Any]]:
    """Return a batch's rows, one for each item, whatever its form."""
    if media == ARROW:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(body).read_all().to_pylist()
        return rows
    if media == CSV:
        read = csv.DictReader(io.StringIO(body.decode(), newline=""))
        return [{**row, "score": float(row["score"]), "title": row["title"] or None} for row in read]
    answer = json.loads(body) if media == JSON else msgspec.msgpack.decode(body)
    return [
        {**{name: one[name] for name in ("user", "status", "source", "tier", "release")}, "title": None, **item}
        for one in answer["results"]
        for item in one["items"]
    ]


def test_all_forms_of_a_batch_say_the_same(service: Service) -> None:
    users = ["42", "nobody", "bare", *ODD, "42"]
    rows = rows_of(JSON, post(service, JSON, users).body)
    assert [row["id"] for row in rows[: len(ODD)]] == ODD
    for media in (CSV, MSGPACK, ARROW):
        assert rows_of(media, post(service, media, users).body) == rows
    for media in BATCH_MEDIA:
        assert rows_of(media, post(service, media, []).body) == []


def test_all_forms_of_a_single_list_say_the_same(service: Service) -> None:
    for path, columns in (
        ("/v1/recommendations/42", ["id", "score", "title"]),
        ("/v1/recommendations/42?fields=id,score&exclude=%C3%A9", ["id", "score"]),
        ("/v1/recommendations/nobody?fields=id", ["id"]),
        ("/v1/similar/7", ["id", "score", "title"]),
        ("/v1/popular?n=2", ["id", "score", "title"]),
    ):
        plain = service.get(path).json
        packed = service.get(path, Accept=MSGPACK)
        assert (packed.headers["content-type"], msgspec.msgpack.decode(packed.body)) == (MSGPACK, plain)
        text = service.get(path, Accept=CSV)
        assert text.headers["content-type"] == "text/csv; charset=utf-8; header=present"
        assert text.headers["x-hotplate-source"] == plain["source"]
        names, *rows = csv.reader(io.StringIO(text.body.decode(), newline=""))
        assert names == columns
        assert rows == [[str(item[name]) for name in columns] for item in plain["items"]]


def test_large_batches_are_the_same_sent_in_pieces_and_compressed(service: Service) -> None:
    for media in BATCH_MEDIA:
        plain = post(service, media, MANY)
        assert plain.headers["transfer-encoding"] == "chunked"
        assert len(plain.body) > 1 << 18
        assert "content-length" not in plain.headers
        for coding, open_body in (("gzip", gzip.decompress), ("zstd", zstandard_of)):
            packed = post(service, media, MANY, Accept_Encoding=coding)
            assert packed.headers["content-encoding"] == coding
            assert len(packed.body) < len(plain.body) / 2
            assert open_body(packed.body) == plain.body
    assert [row["user"] for row in rows_of(ARROW, plain.body)[:120:3]] == MANY[:40]


def zstandard_of(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)).read()


def test_smaller_batches_are_compressed_where_it_pays_and_single_lists_never(service: Service) -> None:
    plain, packed = post(service, JSON, MANY[100:150]), post(service, JSON, MANY[100:150], Accept_Encoding="gzip, br")
    assert (packed.headers["content-encoding"], gzip.decompress(packed.body)) == ("gzip", plain.body)
    assert int(packed.headers["content-length"]) == len(packed.body) < len(plain.body)
    assert "content-encoding" not in post(service, JSON, ["42"], Accept_Encoding="gzip").headers
    assert "content-encoding" not in service.get("/v1/recommendations/1999", Accept_Encoding="gzip").headers


def test_a_reader_that_leaves_an_answer_in_pieces_harms_nobody(service: Service) -> None:
    body = json.dumps({"users": MANY, "n": 10}).encode()
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.request("POST", "/v1/recommendations", body)
        assert connection.getresponse().read(100)
        connection.close()
    assert service.get("/v1/popular").status == 200
    assert "Traceback" not in service.log.read_text()


def test_a_form_that_is_not_offered_is_refused_with_those_that_are(service: Service) -> None:
    answer = service.get("/v1/popular", Accept="image/png")
    assert (answer.status, answer.json["type"]) == (406, "urn:hotplate:problem:not-acceptable")
    assert "application/json, application/msgpack, text/csv" in answer.json["detail"]
    assert service.get("/v1/popular", Accept=ARROW).status == 406
    assert service.request("POST", "/v1/recommendations", b'{"users": []}', Accept="text/html").status == 406


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/*", CSV),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        ("application/json;q=0.5, text/csv", CSV),
        ("application/json;q=0.5, */*;q=0.1", JSON),
        ("application/json; charset=utf-8", JSON),
        ("Text/CSV; Q=1", CSV),
        ("application/msgpack, application/json", JSON),
        ("application/json;q=0, */*", MSGPACK),
        ("text/csv;q=nonsense", CSV),
        ("text/csv;q=nan", CSV),
    ],
)
def test_the_form_is_the_one_that_the_caller_likes_best(accept: str | None, media: str) -> None:
    assert media_type(accept, LIST_MEDIA) == media


@pytest.mark.parametrize("accept", ["", ",", "image/png", "application/json;q=0", "json", "x" * 10_000])
def test_what_is_liked_nowhere_is_refused(accept: str) -> None:
    with pytest.raises(Problem):
        media_type(accept, LIST_MEDIA)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (None, None),
        ("", None),
        ("br, deflate", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0.1, gzip", "gzip"),
        ("zstd;q=0, gzip;q=0", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("identity", None),
        ("GZIP;q=0.5, identity;q=1", "gzip"),
    ],
)
def test_the_compression_is_one_that_the_caller_takes(accept: str | None, coding: str | None) -> None:
    assert content_coding(accept) == coding


def test_without_pyarrow_arrow_is_refused_with_what_to_install() -> None:
    program = (
        "import asyncio, sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from hotplate.serve.api.formats import load\n"
        "from hotplate.serve.problems import Problem\n"
        "try:\n    asyncio.run(load('application/vnd.apache.arrow.stream'))\n"
        "except Problem as problem:\n    print(problem.status, problem.detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("406 ")
    assert "pip install hotplate[arrow]" in done.stdout
