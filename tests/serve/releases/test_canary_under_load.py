"""A canary of 5 %, of 50 % and promoted, under constant load: no answer fails, none is mixed, and users keep theirs."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.releases.canary import ServedCanary
from stores.catalogue import Canary, ReleaseId
from stores.connect import connect
from stores.lifecycle import promote, start_canary
from tests.support.loaded_service import complete, under_load, until
from tests.support.redis_server import running as redis_running
from tests.support.service import a_list, publish_to

USERS = 400
PATHS = tuple(f"/v1/recommendations/{n}?n=3" for n in range(USERS))


def lists(mark: str) -> dict[str, bytes]:
    return {f"user:{n}": a_list(f"{mark}-{n}", "b", "c") for n in range(USERS)}


@pytest.fixture(params=["file", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path / 'store'}"
    else:
        folder = tmp_path / "redis"
        folder.mkdir()
        with redis_running(folder) as server:
            yield server.url()


def chosen_of(release: str, percent: float) -> set[str]:
    """Return who sees a canary."""
    record = Canary(ReleaseId(release), percent, salt=release)
    canary = ServedCanary(record, None, 0.0)  # type: ignore[arg-type]  # nothing is read
    return {str(user) for user in range(USERS) if canary.takes(f"user:{user}")}


@pytest.mark.soak
async def test_a_canary_grows_and_is_promoted_under_load_and_no_answer_fails_or_is_mixed(
    url: str, tmp_path: Path
) -> None:
    marks = {await publish_to(url, lists(mark), live=mark == "old"): mark for mark in ("old", "new")}
    old, new = marks
    seen = defaultdict[str, set[str]](set)

    def check(status: int, body: bytes) -> str | None:
        if (fault := complete(status, body)) is not None:
            return fault
        answer = json.loads(body)
        seen[answer["user"]].add(answer["release"])
        of = answer["items"][0]["id"]
        return None if of == f"{marks[answer['release']]}-{answer['user']}" else "mixed"

    store = connect(url)
    options = ("--workers", "2")
    async with under_load(tmp_path, url, paths=PATHS, rate=600, options=options, check=check) as run:
        shown = set[str]()
        for percent in (5.0, 50.0, 100.0):
            if percent < 100:
                await start_canary(store, ReleaseId(new), percent)
                before, shown = shown, chosen_of(new, percent)
                assert before < shown
                assert (
                    abs(len(shown) - USERS * percent / 100) < 4 * (USERS * percent / 100 * (1 - percent / 100)) ** 0.5
                )
            else:
                await promote(store)
                shown = {str(user) for user in range(USERS)}
            expected = {str(user): {new if str(user) in shown else old} for user in range(USERS)}

            async def is_so(expected: dict[str, set[str]] = expected) -> bool:
                seen.clear()
                await run.windows(2)
                return seen == {user: expected[user] for user in seen} and len(seen) > USERS * 0.9

            await until(is_so, f"not every worker shows the new release to {percent} %")
    await store.close()
    run.answered(url.partition(":")[0])
    assert run.logged('"level":"error"') == 0
    assert set(run.seen("release")) == {old, new}
