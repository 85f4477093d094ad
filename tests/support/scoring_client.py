"""A caller of the scoring contract, as a Stream Analytics job is: finds the signature, sends batches, retries."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientConnectionError, ClientSession, ClientTimeout

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
    takes_records: bool
    """Whether rows are sent as records; else as lists."""

    async def is_healthy(self, session: ClientSession) -> bool:
        async with session.get(self.health_url) as response:
            return response.status == 200 and await response.text() == "Healthy"


async def discover(session: ClientSession, origin: str, path: str = "/swagger.json") -> Endpoint:
    """Read the signature as the Azure ML SDK does: by the ids of operations, and the form by the example."""
    async with session.get(origin + path) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        document = await response.json()
    assert document["swagger"] == "2.0"
    found = {
        operation["operationId"]: (place, method, operation)
        for place, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    health_path, health_method, _ = found["ServiceHealthCheck"]
    score_path, score_method, score = found["RunMLService"]
    assert (health_method, score_method) == ("get", "post")
    assert score["security"] == [{"Bearer": []}]
    bearer = document["securityDefinitions"]["Bearer"]
    assert (bearer["type"], bearer["in"], bearer["name"]) == ("apiKey", "header", "Authorization")
    (parameter,) = score["parameters"]
    assert (parameter["name"], parameter["in"]) == ("serviceInputPayload", "body")
    definitions = document["definitions"]
    given = definitions[parameter["schema"]["$ref"].removeprefix("#/definitions/")]
    answer = definitions[score["responses"]["200"]["schema"]["$ref"].removeprefix("#/definitions/")]
    assert (given["type"], given["properties"]["data"]["type"], answer["type"]) == ("object", "array", "array")
    assert len(answer["example"]) == 1
    assert definitions["ErrorResponse"]["properties"].keys() == {"status_code", "message"}
    takes_records = isinstance(given["example"]["data"][0], dict)
    assert given["properties"]["data"]["items"]["type"] == ("object" if takes_records else "array")
    return Endpoint(origin + score_path, origin + health_path, takes_records)


@dataclass(slots=True)
class ScoringJob:
    """Sends rows in batches, some at once, until each has its answer; counts how often it was told to come back."""

    endpoint: Endpoint
    batch: int
    key: str = "any"
    retries: int = 0
    latencies_s: list[float] = field(default_factory=list)

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
        data: list[object] = (
            [{"user": user, "n": str(n)} for user, n in batch]
            if self.endpoint.takes_records
            else [[user, str(n)] for user, n in batch]
        )
        pause_s = FIRST_PAUSE_S
        while True:
            started = asyncio.get_running_loop().time()
            try:
                async with session.post(self.endpoint.score_url, json={"data": data}) as response:
                    status, retry_after = response.status, response.headers.get("Retry-After", "")
                    answer = await response.json(content_type=None)
            except ClientConnectionError as error:
                raise JobFailed("no answer") from error
            if status == 200:
                self.latencies_s.append(asyncio.get_running_loop().time() - started)
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
