"""`release`: a list of a release that is not live, over HTTP and by `hotplate lookup`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from hotplate.stores import lifecycle, publication
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import run_on
from hotplate.stores.users import erase_users
from tests.support.command import failed, hotplate, json_of
from tests.support.limited_service import samples
from tests.support.redis_server import RedisServer
from tests.support.service import Service, a_list, publish_lists, publish_to, running, serving, until

LISTS = {
    mark: {
        "user:42": a_list(mark, "b"),
        "user:gone": a_list(mark, "secret"),
        "user:denied": a_list(mark, "secret"),
        "item:b": a_list(f"like-{mark}"),
        "popular:": a_list(f"popular-{mark}", "no"),
    }
    for mark in ("old", "live", "canary", "draft")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("previews")


@pytest.fixture(scope="module")
def releases(folder: Path) -> dict[str, str]:
    """Of a store with a release that was live, the live one, the canary, and one that is ready; a user is erased."""
    store = folder / "store"
    published = {
        mark: asyncio.run(publish_lists(store, lists, live=mark in ("old", "live"))) for mark, lists in LISTS.items()
    }
    canary = ReleaseId(published["canary"])
    run_on(f"file://{store}", lambda opened: lifecycle.start_canary(opened, canary, 50.0))
    run_on(f"file://{store}", lambda opened: erase_users(opened, ["gone"]))
    return published


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    path = folder / "keys.json"
    return {name: create(path, name, [name]).key for name in ("read", "admin")} | {
        "both": create(path, "both", ["read", "admin"]).key
    }


@pytest.fixture(scope="module")
def service(folder: Path, releases: dict[str, str], keys: dict[str, str]) -> Iterator[Service]:
    assert len(releases) == len(LISTS)
    assert keys
    deny_list = folder / "denied.txt"
    deny_list.write_text("item:no\nuser:denied\n")
    with running(folder / "store", "--keys", str(folder / "keys.json"), "--deny-list", str(deny_list)) as service:
        until(lambda: service.is_ready)
        yield service


def ids(answer: object) -> list[str]:
    return [item["id"] for item in answer["items"]]  # type: ignore[index]  # JSON


@pytest.mark.parametrize("mark", LISTS)
def test_an_operator_sees_a_release_in_any_state(
    service: Service, releases: dict[str, str], keys: dict[str, str], mark: str
) -> None:
    release = releases[mark]
    key = {"X_API_Key": keys["both"]}
    answer = service.get(f"/v1/recommendations/42?n=2&release={release}", **key)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert (answer.headers["x-hotplate-release"], answer.json["release"]) == (release, release)
    assert ids(answer.json) == [mark, "b"]
    assert ids(service.get(f"/v1/similar/b?release={release}", **key).json) == [f"like-{mark}"]
    popular = service.get(f"/v1/popular?release={release}", **key)
    assert (ids(popular.json), popular.headers["cache-control"]) == ([f"popular-{mark}"], "no-store")
    page = service.get(f"/v1/recommendations/42?n=1&after=0&release={release}", **key).json
    assert ids(service.get(f"/v1/recommendations/42?n=1&after={page['next']}&release={release}", **key).json) == ["b"]


@pytest.mark.parametrize("user", ["gone", "denied", "nobody"])
def test_erased_and_denied_users_get_the_popular_list(
    service: Service, releases: dict[str, str], keys: dict[str, str], user: str
) -> None:
    for mark, release in releases.items():
        answer = service.get(f"/v1/recommendations/{user}?release={release}", X_API_Key=keys["both"])
        assert (answer.json["source"], ids(answer.json)) == ("popular", [f"popular-{mark}"])


def test_only_the_scope_admin_sees_it(service: Service, releases: dict[str, str], keys: dict[str, str]) -> None:
    for path in ("/v1/recommendations/42", "/v1/similar/b", "/v1/popular"):
        query = f"{path}?release={releases['draft']}"
        assert service.get(query).status == 401
        refused = service.get(query, X_API_Key=keys["read"])
        assert (refused.status, refused.json["type"]) == (403, "urn:hotplate:problem:missing-scope")
        assert service.get(query, X_API_Key=keys["admin"]).status == 403  # lacks `read`
        for unknown in ("20200101T000000Z-0000", "no-release"):
            absent = service.get(f"{path}?release={unknown}", X_API_Key=keys["both"])
            assert (absent.status, absent.json["type"]) == (404, "urn:hotplate:problem:no-such-release")
            assert unknown in absent.json["detail"]
    body = b'{"users": ["42"], "release": "x"}'
    assert service.request("POST", "/v1/recommendations", body, X_API_Key=keys["both"]).status == 400


def test_it_counts_nowhere_and_changes_no_later_answer(
    service: Service, releases: dict[str, str], keys: dict[str, str]
) -> None:
    def counts() -> dict[str, float]:
        names = ("hotplate_lookups_total", "hotplate_release_lookups_total", "hotplate_canary_lookups_total")
        return {name: sum(sample.value for sample in samples(service, name)) for name in names}

    key = {"X_API_Key": keys["both"]}
    plain = service.get("/v1/recommendations/42", **key)
    before = counts()
    plain_lookups = before["hotplate_lookups_total"]
    until(lambda: counts()["hotplate_release_lookups_total"] == plain_lookups)  # which workers report each second
    for _ in range(50):
        for release in releases.values():
            assert service.get(f"/v1/recommendations/42?release={release}", **key).status == 200
            assert service.get(f"/v1/recommendations/nobody?release={release}", **key).status == 200
    assert service.get("/v1/recommendations/42", **key).body == plain.body
    until(lambda: counts()["hotplate_release_lookups_total"] > plain_lookups)
    assert set(counts().values()) == {plain_lookups + 1}


def test_the_command_looks_at_a_release(folder: Path, releases: dict[str, str]) -> None:
    store = ("--store", f"file://{folder / 'store'}")
    for mark, release in releases.items():
        answer = json_of("lookup", "42", "--release", release, *store, "--json")
        assert (answer["release"], ids(answer)) == (release, [mark, "b"])
        erased = json_of("lookup", "gone", "--release", release, *store, "--json")
        assert (erased["source"], "secret" in ids(erased)) == ("popular", False)
    unknown = hotplate("lookup", "42", "--release", "20200101T000000Z-0000", *store)
    failed(unknown, "elease 20200101T000000Z-0000 is not in this store")


def test_a_release_of_redis_is_seen_by_service_and_command(tmp_path: Path, redis_server: RedisServer) -> None:
    url = redis_server.url("redis", "previews")
    live = asyncio.run(publish_to(url, LISTS["live"]))
    ready = asyncio.run(publish_to(url, LISTS["draft"], live=False))
    assert json_of("lookup", "42", "--release", ready, "--store", url, "--json")["release"] == ready
    with serving(tmp_path, "--store", url) as service:
        until(lambda: service.is_ready)
        answer = service.get(f"/v1/recommendations/42?release={ready}")  # without keys, this machine may do everything
        assert (answer.json["release"], ids(answer.json)) == (ready, ["draft", "b"])
        assert service.get("/v1/recommendations/42").json["release"] == live


def test_a_draft_that_is_being_written_is_not_seen(folder: Path, releases: dict[str, str]) -> None:
    assert releases
    url = f"file://{folder / 'store'}"
    draft = run_on(url, lambda opened: publication.begin(opened, ReleaseId("20300101T000000Z-0001")))
    failed(hotplate("lookup", "42", "--release", draft.id, "--store", url), "its draft is not sealed")
