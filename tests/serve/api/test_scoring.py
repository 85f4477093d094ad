"""`/score` as the callers of Azure ML's contract rely on it: a real service, a caller as Stream Analytics is one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, ClientTimeout

from hotplate.serve.access.keys import create
from hotplate.serve.api.schemas import MAX_USERS, Score, ScoreError, ScoreRow
from hotplate.serve.api.scoring import SIGNATURE
from tests.support.redis_server import running as running_redis
from tests.support.service import Answer, Service, a_list, publish_lists, publish_to, published, running, serving
from tests.support.waiting import until_true

PARALLEL = 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

# One row: the user, and how many items.
Row = tuple[str, int]


class JobFailed(Exception):
    """The endpoint answered what ends a job: anything but 200 and 503."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a caller learns from the swagger document."""

    score_url: str
    health_url: str

    async def is_healthy(self, session: ClientSession) -> bool:
        async with session.get(self.health_url) as response:
            return response.status == 200 and await response.text() == "Healthy"


async def discover(session: ClientSession, origin: str) -> Endpoint:
    """Read the signature as the Azure ML SDK does: by the ids of operations, and the form by the example."""
    async with session.get(f"{origin}/swagger.json") as response:
        assert (response.status, response.content_type) == (200, "application/json")
        document = await response.json()
    assert document["swagger"] == "2.0"
    fields = {
        operation["operationId"]: (place, method, operation)
        for place, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    health_path, health_method, _ = fields["ServiceHealthCheck"]
    score_path, score_method, score = fields["RunMLService"]
    assert (health_method, score_method) == ("get", "post")
    assert score["security"] == [{"Bearer": []}]
    (parameter,) = score["parameters"]
    assert (parameter["name"], parameter["in"]) == ("serviceInputPayload", "body")
    definitions = document["definitions"]
    definition = definitions[parameter["schema"]["$ref"].removeprefix("#/definitions/")]
    answer = definitions[score["responses"]["200"]["schema"]["$ref"].removeprefix("#/definitions/")]
    assert (definition["type"], definition["properties"]["data"]["type"], answer["type"]) == (
        "object",
        "array",
        "array",
    )
    return Endpoint(origin + score_path, origin + health_path)


@dataclass(slots=True)
class ScoringJob:
    """Sends rows in batches, some at once, until each has its answer; counts how often it got 503."""

    endpoint: Endpoint
    batch: int
    key: str = "any"
    retries: int = 0

    async def run(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the elements of all rows, in order; JobFailed for a status that ends the job."""
        batches = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        free = asyncio.Semaphore(PARALLEL)
        timeout = ClientTimeout(total=60)
        async with ClientSession(headers={"Authorization": f"Bearer {self.key}"}, timeout=timeout) as session:

            async def send(batch: Sequence[Row]) -> list[dict[str, Any]]:
                async with free:
                    return await self._score(session, batch)

            async with asyncio.TaskGroup() as group:
                sent = [group.create_task(send(batch)) for batch in batches]
        return [element for task in sent for element in task.result()]

    async def _score(self, session: ClientSession, batch: Sequence[Row]) -> list[dict[str, Any]]:
        data = [{"user": user, "n": str(n)} for user, n in batch]
        pause_s = FIRST_PAUSE_S
        while True:
            async with session.post(self.endpoint.score_url, json={"data": data}) as response:
                status = response.status
                retry_after = response.headers.get("Retry-After", "")
                answer = await response.json(content_type=None)
            if status == 200:
                assert isinstance(answer, list)
                assert len(answer) == len(data)
                assert len({element["release"] for element in answer if "release" in element}) <= 1
                return answer
            assert (answer["status_code"], bool(answer["message"])) == (status, True)
            if status != 503:
                raise JobFailed(f"{status}: {answer['message']}")
            assert int(retry_after) > 0
            self.retries += 1
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)


KNOWN = 4_000
ROWS: list[Row] = [(str(user), 1 + user % 10) for user in range(KNOWN + 1_000)]
BATCHES = (50, 1000)


def lists() -> dict[str, bytes]:
    return {f"user:{user}": a_list(*(f"{user}-{rank}" for rank in range(10))) for user in range(KNOWN)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring") / "store"
    published(folder, lists())
    return folder


def scored(service: Service, data: object, **parameters: object) -> list[Any]:
    answer = post(service, {"data": data, **parameters})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
    msgspec.json.decode(answer.body, type=list[Score])
    return list(answer.json)


def post(service: Service, body: object) -> Answer:
    return service.post("/score", body)


def refused(service: Service, body: bytes, status: int = 400) -> str:
    answer = service.post("/score", body)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["status_code"] == answer.json["status"] == status
    assert answer.json["message"] == answer.json["detail"]
    return str(answer.json["message"])


def check(elements: list[dict[str, Any]], rows: list[Row]) -> None:
    """Compare answers with rows: each in its place, with the right list and length."""
    assert len(elements) == len(rows)
    for element, (user, n) in zip(elements, rows, strict=True):
        assert element["user"] == user
        ids = [item["id"] for item in element["items"]]
        known = int(user) < KNOWN
        assert element["source"] == ("personal" if known else "popular")
        assert ids == ([f"{user}-{rank}" for rank in range(n)] if known else ["p1", "p2", "p3"][:n])


@pytest.mark.parametrize("batch", BATCHES)
async def test_scoring_job_gets_every_answer_in_order_for_any_batches(service: Service, batch: int) -> None:
    async with ClientSession() as session:
        endpoint = await discover(session, service.url)
        assert await endpoint.is_healthy(session)
    rows = ROWS * (batch // 250 or 1)  # as many batches as a job sends at once
    job = ScoringJob(endpoint, batch)
    check(await job.run(rows), rows)


@pytest.mark.parametrize(
    "data",
    [
        [{"user": "7", "n": "5"}, {"user": 8, "n": 5.0}],
        [{"user": 7.0, "n": 5}, [8.0, "5"]],
        [[7, 5], {"user": "8", "n": 5, "EventEnqueuedUtcTime": "2026-11-20T00:00:00Z", "nested": {"a": [1]}}],
        [["7", 5, "another column"], ["8", "5"]],
    ],
)
def test_rows_come_as_records_or_lists_and_values_as_strings_or_numbers(service: Service, data: list[object]) -> None:
    check(scored(service, data), [("7", 5), ("8", 5)])
    without_a_count = [{"user": "7"}, {"user": "7", "n": None}, ["7"], ["7", None], "7", 7]
    check(scored(service, without_a_count, GlobalParameters=1.0), [("7", 10)] * 6)


def test_invalid_row_fails_only_its_own_element(service: Service) -> None:
    nonsense: list[object] = [
        None, True, 1.5, "", [], {}, {"n": "5"}, {"user": None}, {"user": ["7"]}, {"user": ""}, {"user": "x" * 257},
        ["é" * 129], 2**64, int("9" * 300), ["7", "Mon"], ["7", 0], {"user": "7", "n": 1001}, {"user": "7", "n": ""},
        [[[["7"]]]], {"user": 2.0**53}, [-(2.0**60)],
    ]  # fmt: skip
    rows = [row for bad in nonsense for row in (bad, {"user": "7", "n": 2})]
    assert scored(service, []) == []
    elements = scored(service, rows)
    check(elements[1::2], [("7", 2)] * len(nonsense))
    for element in elements[::2]:
        assert (element["status"], element["items"]) == ("invalid", [])
        assert element["error"].startswith("the row is invalid: ")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "`data`"),
        (b'{"data": {"user": "7"}}', "Expected `array`"),
        (b'\xff{"data": []}', "malformed"),
        (b'{"data": [' + b"[" * 200_000, "recursion"),
        (b'{"data": [' + b",".join([b'"7"'] * 2_001) + b"]}", "2000"),
        (b'{"data": [' + b",".join([b'["7", 1000]'] * 21) + b"]}", "20000 items"),
    ],
)
def test_malformed_scoring_body_is_400(service: Service, body: bytes, said: str) -> None:
    assert said in refused(service, body)


def test_large_bodies_and_other_methods_get_scoring_errors(service: Service) -> None:
    assert "1048576" in refused(service, b" " * (1 << 20) + b'{"data": []}', 413)
    assert len(scored(service, ["7"] * MAX_USERS)) == MAX_USERS
    answer = service.get("/score")
    assert (answer.status, answer.headers["allow"], answer.json["status_code"]) == (405, "POST", 405)


async def test_scoring_job_survives_a_store_that_stops_answering(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server:
        await publish_to(server.url(), lists())
        with serving(tmp_path, "--store", server.url()) as service:
            job = ScoringJob(Endpoint(f"{service.url}/score", f"{service.url}/"), 50)
            check(await job.run(ROWS), ROWS)
            with server.stopped():
                refused_meanwhile = service.post("/score", b'{"data": ["7"]}')
                assert (refused_meanwhile.status, refused_meanwhile.headers["retry-after"]) == (503, "1")
                running_job = asyncio.create_task(job.run(ROWS))
                await until_true(lambda: job.retries >= PARALLEL)
            check(await running_job, ROWS)


async def test_scoring_job_waits_for_its_rate_and_stops_at_unknown_key(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = create(keys, "job", ["read"], 2).key
    with running(folder, "--keys", str(keys)) as service:
        async with ClientSession() as session:
            endpoint = await discover(session, service.url)  # takes no key
        job = ScoringJob(endpoint, 50, key)
        rows = ROWS[:350]  # 7 batches at once: they take more than the rate, however late the machine sends some
        check(await job.run(rows), rows)
        assert job.retries > 0
        with pytest.raises(ExceptionGroup) as raised:
            await ScoringJob(endpoint, 50, "another").run(ROWS[:50])
        assert raised.group_contains(JobFailed, match="401: ")


async def test_scoring_job_does_not_wait_for_damaged_lists(tmp_path: Path) -> None:
    store = tmp_path / "store"
    damaged = {f"user:{user}": a_list("damaged list") for user in ("15", "150")}
    whole = {f"user:{user}": a_list(*map(str, range(10))) for user in range(1000, 3000)}  # many blocks
    await publish_lists(store, dict(sorted((whole | damaged).items())))
    for file in store.rglob("*.mdb"):
        file.write_bytes(file.read_bytes().replace(b"damaged list", b"DAMAGED LIST"))
    with running(store) as service:
        elements = scored(service, ["15", "150"])
    assert [(element["status"], element["source"]) for element in elements] == [("error", "popular")] * 2


def test_signature_matches_the_types() -> None:
    defined = SIGNATURE["definitions"]
    row = defined["ServiceInput"]["properties"]["data"]["items"]
    element = defined["ServiceOutput"]["items"]
    assert defined["ServiceInput"]["properties"]["data"]["maxItems"] == MAX_USERS
    for kind, described in ((ScoreRow, row), (Score, element), (ScoreError, defined["ErrorResponse"])):
        fields = msgspec.structs.fields(kind)
        assert [*described["properties"]] == [field.name for field in fields]
        assert described["required"] == [field.name for field in fields if field.required]
