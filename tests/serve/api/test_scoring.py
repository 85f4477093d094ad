"""`/score` as the callers of Azure ML's contract rely on it: a real service, a caller as Stream Analytics is one."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web

import hotplate
from hotplate.serve.access.keys import create
from hotplate.serve.api.problems import Problem
from hotplate.serve.api.scoring import Score, refusal
from tests.support.redis_server import running as running_redis
from tests.support.scoring_client import PARALLEL, Endpoint, JobFailed, Row, ScoringJob, discover
from tests.support.service import Answer, Service, a_list, publish_lists, publish_to, running, running_app, serving
from tests.support.soak import scaled

KNOWN = 4_000
ROWS: list[Row] = [(str(user), 1 + user % 10) for user in range(KNOWN + 1_000)]
BATCHES = (50, 200, 500, 1000, 2000)


def lists() -> dict[str, bytes]:
    return {f"user:{user}": a_list(*(f"{user}-{rank}" for rank in range(10))) for user in range(KNOWN)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring") / "store"
    asyncio.run(publish_lists(folder, lists()))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running(folder) as running_service:
        yield running_service


def scored(service: Service, data: object, **others: object) -> list[Any]:
    answer = post(service, {"data": data, **others})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
    msgspec.json.decode(answer.body, type=list[Score])
    return list(answer.json)


def post(service: Service, body: object) -> Answer:
    return service.request("POST", "/score", json.dumps(body).encode())


def refused(service: Service, body: bytes, status: int = 400) -> str:
    answer = service.request("POST", "/score", body)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["status_code"] == answer.json["status"] == status
    assert answer.json["message"] == answer.json["detail"]
    return str(answer.json["message"])


def check(elements: list[dict[str, Any]], rows: list[Row]) -> None:
    """Hold the answers against the rows: each in its place, with its own list, cut to its own length."""
    assert len(elements) == len(rows)
    for element, (user, n) in zip(elements, rows, strict=True):
        assert element["user"] == user
        ids = [item["id"] for item in element["items"]]
        known = int(user) < KNOWN
        assert element["source"] == ("personal" if known else "popular")
        assert ids == ([f"{user}-{rank}" for rank in range(n)] if known else ["p1", "p2", "p3"][:n])


@pytest.mark.parametrize("batch", BATCHES)
async def test_a_job_gets_every_answer_in_order_whatever_its_batches(service: Service, batch: int) -> None:
    async with ClientSession() as session:
        endpoint = await discover(session, service.url)
        assert await endpoint.is_healthy(session)
    rows = ROWS * (batch // 250 or 1)  # so that as many batches are under way as a job sends at once
    job = ScoringJob(endpoint, batch)
    check(await job.run(rows), rows)


@pytest.mark.parametrize(
    "data",
    [
        [{"user": "7", "n": "5"}, {"user": "8", "n": "5"}],
        [{"user": 7, "n": 5}, {"user": 8, "n": 5.0}],
        [["7", "5"], ["8", "5"]],
        [[7, 5], {"user": "8", "n": 5, "EventEnqueuedUtcTime": "2026-11-20T00:00:00Z", "nested": {"a": [1]}}],
        [["7", 5, "another column"], ("8", "5")],
    ],
)
def test_rows_come_as_records_or_lists_and_values_as_strings_or_numbers(service: Service, data: list[object]) -> None:
    check(scored(service, data), [("7", 5), ("8", 5)])


def test_a_row_without_a_count_gets_ten(service: Service) -> None:
    data = [{"user": "7"}, {"user": "7", "n": None}, ["7"], ["7", None], "7", 7]
    check(scored(service, data, GlobalParameters=1.0), [("7", 10)] * 6)


def test_a_row_that_makes_no_sense_spoils_only_its_own_element(service: Service) -> None:
    nonsense: list[object] = [
        None, True, 1.5, "", [], {}, {"n": "5"}, {"user": None}, {"user": ["7"]}, {"user": ""}, {"user": "x" * 257},
        ["é" * 129], 2**64, int("9" * 300), ["7", "Mon"], ["7", 0], {"user": "7", "n": 1001}, {"user": "7", "n": ""},
        [[[["7"]]]],
    ]  # fmt: skip
    rows = [row for one in nonsense for row in (one, {"user": "7", "n": 2})]
    elements = scored(service, rows)
    check(elements[1::2], [("7", 2)] * len(nonsense))
    for element in elements[::2]:
        assert (element["status"], element["items"]) == ("invalid", [])
        assert element["error"].startswith("the row makes no sense: ")


def test_an_empty_batch_has_an_empty_answer(service: Service) -> None:
    assert scored(service, []) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "`data`"),
        (b'{"data": {"user": "7"}}', "Expected `array`"),
        (b'{"data": "7"}', "Expected `array`"),
        (b'\xff{"data": []}', "malformed"),
        (b'{"data": ["\\ud800"]}', "truncated"),
        (b'{"data": [' + b"[" * 200_000, "recursion"),
        (b'{"data": [' + b",".join([b'"7"'] * 2_001) + b"]}", "2000"),
        (b'{"data": [' + b",".join([b'["7", 1000]'] * 21) + b"]}", "20000 items"),
    ],
)
def test_a_body_that_makes_no_sense_is_400(service: Service, body: bytes, said: str) -> None:
    assert said in refused(service, body)


def test_a_body_that_is_too_large_is_413(service: Service) -> None:
    assert "1048576" in refused(service, b" " * (1 << 20) + b'{"data": []}', 413)


def test_another_method_is_405(service: Service) -> None:
    answer = service.get("/score")
    assert (answer.status, answer.headers["allow"], answer.json["status_code"]) == (405, "POST", 405)


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_whatever_passes_by_itself_is_503_with_a_time_to_come_back(status: int) -> None:
    refusals = [refusal(Problem(status, "later", "come back", headers)) for headers in (None, {"Retry-After": "7"})]
    assert [one.status for one in refusals] == [503, 503]
    assert [one.headers["Retry-After"] for one in refusals] == ["1", "7"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 500])
def test_what_waiting_would_not_mend_keeps_its_status(status: int) -> None:
    assert refusal(Problem(status, "never", "do not come back")).status == status


async def test_a_job_outlasts_a_store_without_a_release(tmp_path: Path) -> None:
    with running(tmp_path / "store") as service:
        waiting = service.request("POST", "/score", b'{"data": ["7"]}')
        assert (waiting.status, waiting.headers["retry-after"]) == (503, "1")
        job = ScoringJob(Endpoint(f"{service.url}/score", f"{service.url}/", takes_records=True), 50)
        rows = ROWS[:2_000]
        running_job = asyncio.create_task(job.run(rows))
        while not job.retries:
            await asyncio.sleep(0.01)
        await publish_lists(tmp_path / "store", lists())
        check(await running_job, rows)


async def test_a_job_outlasts_a_store_that_stops_to_answer(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        await publish_to(server.url(), lists())
        with serving(tmp_path, "--store", server.url()) as service:
            job = ScoringJob(Endpoint(f"{service.url}/score", f"{service.url}/", takes_records=True), 50)
            check(await job.run(ROWS), ROWS)
            server.send_signal(signal.SIGSTOP)
            try:
                refused_meanwhile = service.request("POST", "/score", b'{"data": ["7"]}')
                assert (refused_meanwhile.status, refused_meanwhile.headers["retry-after"]) == (503, "1")
                running_job = asyncio.create_task(job.run(ROWS))
                while job.retries < PARALLEL:
                    await asyncio.sleep(0.01)
            finally:
                server.send_signal(signal.SIGCONT)
            check(await running_job, ROWS)


def test_what_is_denied_is_not_scored(folder: Path, tmp_path: Path) -> None:
    denied = tmp_path / "denied"
    denied.write_text("user:7\nitem:8-0\n")
    with running(folder, "--deny-list", str(denied)) as service:
        of_user, of_item = scored(service, [["7", 2], ["8", 2]])
    assert (of_user["status"], of_user["source"]) == ("unknown", "popular")
    assert [item["id"] for item in of_item["items"]] == ["8-1", "8-2"]


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_a_job_loses_no_answer_while_releases_flip(tmp_path: Path) -> None:
    store = tmp_path / "store"
    await publish_lists(store, lists())
    with running(store, "--workers", "2") as service:
        job = ScoringJob(Endpoint(f"{service.url}/score", f"{service.url}/", takes_records=True), 200)
        for _ in range(scaled(15, least=3)):
            elements, _ = await asyncio.gather(job.run(ROWS * 4), publish_lists(store, lists()))
            check(elements, ROWS * 4)


async def test_a_job_outlasts_its_rate_and_ends_where_its_key_is_not_known(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = create(keys, "job", ["read"], 40).key
    with running(folder, "--keys", str(keys)) as service:
        async with ClientSession() as session:
            endpoint = await discover(session, service.url)  # takes no key
        job = ScoringJob(endpoint, 50, key)
        check(await job.run(ROWS), ROWS)
        assert job.retries > 0
        with pytest.raises(ExceptionGroup) as raised:
            await ScoringJob(endpoint, 50, "another").run(ROWS[:50])
        assert raised.group_contains(JobFailed, match="401: ")


async def test_a_job_does_not_wait_for_lists_that_are_damaged(tmp_path: Path) -> None:
    store = tmp_path / "store"
    damaged = {f"user:{user}": a_list("damaged list") for user in ("7", "8")}
    await publish_lists(store, damaged | {f"user:{user}": a_list("whole") for user in range(10, 30)})
    for file in store.rglob("*.mdb"):
        file.write_bytes(file.read_bytes().replace(b"damaged list", b"DAMAGED LIST"))
    with running(store) as service:
        elements = scored(service, ["7", "8"])
    assert [(one["status"], one["source"]) for one in elements] == [("error", "popular")] * 2


async def test_misuse_ends_a_job_at_once(service: Service) -> None:
    job = ScoringJob(Endpoint(f"{service.url}/score", f"{service.url}/", takes_records=False), 2_001)
    with pytest.raises(ExceptionGroup) as raised:
        await job.run(ROWS)
    assert raised.group_contains(JobFailed, match="400: ")


def test_the_signature_comes_in_either_version(service: Service) -> None:
    versions = {version: service.get(f"/swagger.json?version={version}").json for version in ("2", "2.0", "3", "3.0")}
    assert versions["2"] == versions["2.0"] == service.get("/swagger.json").json
    assert versions["3"] == versions["3.0"]
    assert (versions["2"]["swagger"], versions["3"]["openapi"]) == ("2.0", "3.0.3")
    assert versions["3"]["components"]["schemas"] == versions["2"]["definitions"]
    assert service.get("/swagger.json?version=4").status == 400


def test_the_example_of_the_signature_is_answered_as_the_signature_says(service: Service) -> None:
    definitions = service.get("/swagger.json").json["definitions"]
    (first, _) = scored(service, definitions["ServiceInput"]["example"]["data"])
    described = definitions["ServiceOutput"]["items"]["properties"]
    assert first.keys() == described.keys() - {"error", "canary"}
    assert first.keys() == definitions["ServiceOutput"]["example"][0].keys()


def test_the_service_says_that_it_is_healthy(service: Service) -> None:
    answer = service.get("/")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (
        200,
        b"Healthy",
        "text/plain; charset=utf-8",
    )
    assert service.request("HEAD", "/").status == 200


async def test_a_job_finds_the_routes_inside_another_application(folder: Path) -> None:
    app = web.Application()
    hotplate.mount(app, "/recs", hotplate.open(f"file://{folder}"))
    async with running_app(app) as origin:
        async with ClientSession() as session:
            endpoint = await discover(session, origin, "/recs/swagger.json")
            assert await endpoint.is_healthy(session)
        check(await ScoringJob(endpoint, 200).run(ROWS), ROWS)
