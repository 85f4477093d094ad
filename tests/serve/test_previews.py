"""`release`: a list of a release that is not live, over HTTP and by `hotplate lookup`."""

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.lists.reader import TieredReader
from hotplate.stores import lifecycle, publication
from hotplate.stores.catalogue import Catalogue, ReleaseId
from hotplate.stores.connect import run_on
from hotplate.stores.encoding import USER
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import Row
from hotplate.stores.users import erase_users
from tests.support.command import failed, hotplate, json_of
from tests.support.limited_service import samples
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.remote import RemoteStore
from tests.support.service import Service, a_list, ids, published, running, serving, until
from tests.support.stores import publish
from tests.support.virtual import virtual

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
    releases = {mark: published(store, lists, live=mark in ("old", "live")) for mark, lists in LISTS.items()}
    canary = ReleaseId(releases["canary"])
    run_on(f"file://{store}", lambda opened: lifecycle.start_canary(opened, canary, 50.0))
    run_on(f"file://{store}", lambda opened: erase_users(opened, ["gone"]))
    return releases


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    path = folder / "keys.json"
    return {name: create(path, name, [name]).key for name in ("read", "admin")} | {
        "both": create(path, "both", ["read", "admin"]).key,
        "slow": create(path, "slow", ["read", "admin"], rate=1.0).key,
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
        assert refused.problem == (403, "missing-scope")
        assert service.get(query, X_API_Key=keys["admin"]).status == 403  # lacks `read`
        for unknown in ("20200101T000000Z-0000", "no-release"):
            absent = service.get(f"{path}?release={unknown}", X_API_Key=keys["both"])
            assert absent.problem == (404, "no-such-release")
            assert unknown in absent.json["detail"]
    body = b'{"users": ["42"], "release": "x"}'
    assert service.post("/v1/recommendations", body, X_API_Key=keys["both"]).status == 400


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


def test_a_preview_counts_once_against_the_rate_limit(
    service: Service, releases: dict[str, str], keys: dict[str, str]
) -> None:
    """Of one request a second, of which there is one."""
    path = f"/v1/popular?release={releases['draft']}"
    assert service.get(path, X_API_Key=keys["slow"]).status == 200
    assert service.get(path, X_API_Key=keys["slow"]).status == 429


def test_a_previewed_release_is_not_logged_as_live(
    service: Service, releases: dict[str, str], keys: dict[str, str]
) -> None:
    for release in releases.values():
        assert service.get(f"/v1/popular?release={release}", X_API_Key=keys["both"]).status == 200
    until(lambda: f"release {releases['live']} is live" in service.log.read_text())
    for mark in ("old", "draft"):
        assert f"release {releases[mark]} is live" not in service.log.read_text()


async def test_users_whose_erasure_the_store_has_lost_stay_hidden(memory: MemoryStore) -> None:
    await publish(memory, [Row("popular:", a_list("p")), Row("user:1", a_list("secret"))])
    ready = await publish(memory, [Row("popular:", a_list("p")), Row("user:1", a_list("secret"))], live=False)
    reader = TieredReader({"memory": memory})
    older = deepcopy(vars(memory))
    await erase_users(memory, ["1"])
    await reader.tiers[0].follower.refresh()
    vars(memory).update(older)
    async with reader.preview(ready) as preview:
        assert (await preview.read(USER, "1")).source == "popular"
        assert (await preview.read(USER, "2")).source == "popular"
    assert (await reader.read(USER, "1")).source == "popular"


class Hanging(RemoteStore):
    """A store in which reads of rows, or those of the catalogue too, take an hour."""

    hanging = "get_many"

    async def catalogue(self) -> Catalogue:
        if self.hanging == "catalogue":
            await asyncio.sleep(3600)
        return await super().catalogue()


@pytest.mark.parametrize("hanging", ["get_many", "catalogue"])
@virtual
async def test_a_preview_of_a_store_that_hangs_is_given_up(memory: MemoryStore, hanging: str) -> None:
    ready = await publish(memory, live=False)
    store = Hanging(memory)
    store.hanging = hanging
    store.delay_s = 3600.0
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable, match="could not be read in 10 s"):
        async with TieredReader({"remote": store}).preview(ready):
            pass
    assert asyncio.get_running_loop().time() - began < 11


@pytest.mark.parametrize("hanging", ["get_many", "catalogue"])
@virtual
async def test_a_preview_goes_on_without_a_store_that_hangs(memory: MemoryStore, hanging: str) -> None:
    ready = await publish(memory, [Row("popular:", a_list("p")), Row("user:1", a_list("a"))], live=False)
    store = Hanging(memory)
    store.hanging = hanging
    store.delay_s = 3600.0
    async with TieredReader({"remote": store, "memory": memory}).preview(ready) as preview:
        answer = await preview.read(USER, "1")
    assert (answer.tier, answer.source) == ("memory", "personal")


class Unreadable(RemoteStore):
    """A store whose catalogue cannot be read."""

    async def catalogue(self) -> Catalogue:
        raise StoreUnavailable("gone")


async def test_a_preview_needs_one_of_several_stores(memory: MemoryStore) -> None:
    ready = await publish(memory, [Row("popular:", a_list("p")), Row("user:1", a_list("a"))], live=False)
    reader = TieredReader({"gone": Unreadable(MemoryStore()), "memory": memory})
    async with reader.preview(ready) as preview:
        answer = await preview.read(USER, "1")
        assert (answer.tier, answer.release.id, answer.source) == ("memory", ready, "personal")
    with pytest.raises(StoreUnavailable, match="gone"):
        async with TieredReader({"gone": Unreadable(MemoryStore())}).preview(ready):
            pass


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
    live = published(url, LISTS["live"])
    ready = published(url, LISTS["draft"], live=False)
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
