"""Faults of real stores behind a service under load: every request is answered, and operators see the fault."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis as redis_py

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.transfer import copy, repair
from tests.support.balancer import balanced
from tests.support.limited_service import counted
from tests.support.readers import lists
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as redis_running
from tests.support.service import publish_to, serving, until

pytestmark = pytest.mark.soak

USER = "7"
# A metric that rises, and labels.
Rise = tuple[str, dict[str, str]]
OUTAGE: list[Rise] = [
    ("hotplate_store_operation_duration_seconds_count", {"outcome": "error"}),
    ("hotplate_breaker_open", {}),
    ("hotplate_degraded", {}),
]
DAMAGE: list[Rise] = [("hotplate_store_corrupt_total", {}), ("hotplate_degraded", {})]
UNREAD: Rise = ("hotplate_lookups_total", {"outcome": "error"})


async def copied(source: str, target: str, release: str, act: Callable[..., object] = copy) -> None:
    store, other = connect(source), connect(target)
    try:
        await act(store, other, ReleaseId(release))  # type: ignore[misc]  # either returns a coroutine
    finally:
        await store.close()
        await other.close()


@contextmanager
def killed(redis: RedisServer, _: str) -> Iterator[None]:
    redis.kill()
    yield
    redis.start()


@contextmanager
def damaged(redis: RedisServer, url: str) -> Iterator[None]:
    """Change the user's list in its place."""
    if url.startswith("redis"):
        with redis_py.Redis(port=redis.port) as client:
            (name,) = client.keys(f"*:user:{USER}")
            client.setrange(name, client.strlen(name) - 1, b"\x00")
    else:
        (path,) = Path(url.removeprefix("file://")).glob("releases/*.mdb")
        place = path.read_bytes().index(b'"own-7"')
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b'"OWN-7"')
    yield


def list_in(status: int, body: bytes) -> str:
    """Return what a list begins with; anything but a list as it came."""
    return str(json.loads(body)["items"][0]["id"]) if status == 200 else f"{status} {body!r}"


@pytest.mark.parametrize(
    ("fault", "tiers", "rises"),
    [
        pytest.param(killed, ["redis", "file"], OUTAGE, id="redis is killed"),
        pytest.param(killed, ["redis"], [*OUTAGE, UNREAD], id="redis, alone, is killed"),
        pytest.param(damaged, ["redis", "file"], DAMAGE, id="a list in redis is damaged"),
        pytest.param(damaged, ["file"], [*DAMAGE, UNREAD], id="a list in a file, alone, is damaged"),
    ],
)
def test_faults_lose_no_request_and_are_seen_on_metrics(
    tmp_path: Path,
    fault: Callable[[RedisServer, str], AbstractContextManager[None]],
    tiers: list[str],
    rises: list[Rise],
) -> None:
    (tmp_path / "redis").mkdir()
    source = f"file://{tmp_path}/source"
    with redis_running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as redis:
        urls = [redis.url() if tier == "redis" else f"file://{tmp_path}/store" for tier in tiers]
        release = asyncio.run(publish_to(source, lists("own")))
        for url in urls:
            asyncio.run(copied(source, url, release))
        options = [word for url in urls for word in ("--store", url)]
        with serving(tmp_path, *options) as service:

            def is_well() -> bool:
                answer = service.get(f"/v1/recommendations/{USER}").json
                found = (answer["source"], answer["tier"], service.get("/readyz").json["status"])
                return found == ("personal", tiers[0], "ready")

            until(is_well)
            with balanced(service.port, path=f"/v1/recommendations/{USER}", outcome=list_in) as callers:
                before = [counted(service, name, **labels) for name, labels in rises]
                with fault(redis, urls[0]):
                    until(
                        lambda: all(
                            counted(service, name, **labels) > was
                            for (name, labels), was in zip(rises, before, strict=True)
                        )
                    )
                    time.sleep(1)
                    assert service.is_ready()
                if fault is damaged:
                    asyncio.run(copied(urls[0], source, release, repair))
                until(is_well)
        assert set(callers.outcomes) <= {f"own-{USER}", "own-popular"}, callers.outcomes
        assert callers.outcomes[f"own-{USER}"] > (0 if len(tiers) == 1 else 0.9 * callers.outcomes.total())
