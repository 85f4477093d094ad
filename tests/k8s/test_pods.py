"""The pods of the manifests, started as their specs say: who they run as, what they may do, and how they end."""

import asyncio
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.command import hotplate
from tests.support.kubernetes import Object, built
from tests.support.pods import WAIT_S, Cluster, Pod, require_namespaces, running
from tests.support.redis_server import RedisServer
from tests.support.redis_server import running as running_redis
from tests.support.service import a_list, publish_to, serving

pytestmark = pytest.mark.k8s

USERS = 50
# What a change of the endpoints takes until every node and proxy has it.
LAG_S = 1.5
# How many requests a caller makes on one connection: it is one of those who open many, or keeps it for seconds.
REQUESTS = (2, 2, 2, 500)
PASSWORD = "of-the-store"
# As /proc/net/tcp writes it.
LISTENS = "0A"


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    require_namespaces()


def spec_of(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    job = found["spec"].get("jobTemplate", found)["spec"]
    return dict(job["template"]["spec"])


def url_of(server: RedisServer) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that the pods' user can pass through."""
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.owner() == "root":
            path.chmod(path.stat().st_mode | 0o111)
    return tmp_path


@pytest.fixture
def keys(folder: Path) -> tuple[str, dict[str, str]]:
    """A key that may read, and the secret with the file that knows it."""
    done = hotplate("keys", "create", "web", "--scope", "read", "--keys", folder / "keys.json", "--json")
    key: str = json.loads(done.stdout)["key"]
    return key, {"keys.json": (folder / "keys.json").read_text()}


@pytest.fixture(params=["overlays/dev", "overlays/edge"])
def cluster(request: pytest.FixtureRequest, folder: Path, keys: tuple[str, dict[str, str]]) -> Iterator[Cluster]:
    """A cluster with a store, behind the name that the overlay has for it, in which users have lists."""
    lists = {f"user:{user}": a_list(f"{user}-a", f"{user}-b") for user in range(USERS)}
    objects = built(request.param)
    secrets = {"hotplate-keys": keys[1], "hotplate-store": {"password": PASSWORD}}
    if request.param == "overlays/edge":
        asyncio.run(publish_to(f"file://{folder}/store", lists))
        yield Cluster(objects, folder, secrets, {"hotplate-store": folder / "store"})
        return
    (folder / "redis").mkdir()
    with running_redis(folder / "redis", password=PASSWORD) as server:
        asyncio.run(publish_to(url_of(server), lists))
        yield Cluster(objects, folder, secrets, servers={("hotplate-redis", 6379): server.port})


class Callers:
    """Callers with connections that they keep, and the endpoints that they know, which are as old as LAG_S."""

    def __init__(self, key: str) -> None:
        self.pods = list[Pod]()
        self.outcomes = Counter[str]()
        self.by_pod = Counter[Pod]()
        self.over = threading.Event()
        self.endpoints = list[Pod]()
        self._headers = {"X-API-Key": key}

    def follow(self) -> None:
        """Learn who may be called, late."""
        changes = [(time.monotonic(), list[Pod]())]
        while not self.over.wait(0.02):
            now = time.monotonic()
            ready = [pod for pod in self.pods if pod.is_ready and not pod.is_terminating]
            if ready != changes[-1][1]:
                changes.append((now, ready))
            self.endpoints = next(pods for at, pods in reversed(changes) if at <= now - LAG_S or at == changes[0][0])

    def call(self) -> None:
        """Request one list after the other, until the connection's end is announced, or a while; then open another."""
        draw = random.Random()
        while not self.over.wait(0.005):
            if not self.endpoints:
                continue
            pod = draw.choice(self.endpoints)
            try:
                connection = http.client.HTTPConnection("hotplate")
                connection.sock = pod.connect(pod.port("http"), 10)
                for _ in range(draw.choice(REQUESTS)):
                    self.by_pod[pod] += 1
                    if not self._get(connection, draw.randrange(USERS)) or self.over.wait(0.005):
                        break
            except (OSError, http.client.HTTPException) as error:
                self.outcomes[f"{type(error).__name__}: {error}"] += 1
            finally:
                connection.close()

    def _get(self, connection: http.client.HTTPConnection, user: int) -> bool:
        connection.request("GET", f"/v1/recommendations/{user}", headers=self._headers)
        response = connection.getresponse()
        body = response.read()
        # On a busy machine a read of the store may be over its time, and the popular list the answer.
        found = [kind for kind, item in (("own", f'"{user}-a"'), ("popular", '"p1"')) if item.encode() in body]
        self.outcomes[found[0] if response.status == 200 and found else f"{response.status}: {body!r}"] += 1
        return not response.will_close


@contextmanager
def calling(key: str) -> Iterator[Callers]:
    callers = Callers(key)
    threads = [threading.Thread(target=callers.follow), *(threading.Thread(target=callers.call) for _ in range(6))]
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        callers.over.set()
        for thread in threads:
            thread.join()


def until(is_so: Callable[[], Any], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


def test_a_pod_ends_under_load_in_its_grace_period_and_no_request_fails(
    cluster: Cluster, keys: tuple[str, dict[str, str]]
) -> None:
    spec = spec_of(list(cluster.objects), "Deployment", "hotplate")
    with ExitStack() as stack, calling(keys[0]) as callers:
        old, new = (stack.enter_context(running(cluster, spec, name)) for name in ("old", "new"))
        callers.pods = [old, new]
        for pod in (old, new):
            pod.watch()
        until(lambda: min(callers.by_pod[old], callers.by_pod[new]) > 50, lambda: old.log + new.log)
        check_rights(old)
        code, took_s = old.delete()
        assert code == 0, old.log
        assert took_s < spec["terminationGracePeriodSeconds"]
        until(lambda: callers.endpoints == [new], lambda: "the old pod is called still")
        answered = callers.by_pod[new]
        until(lambda: callers.by_pod[new] > answered + 50, lambda: str(callers.outcomes))
        assert (old.failed_probes, new.failed_probes) == ([], [])
    assert "own" in callers.outcomes
    assert callers.outcomes.keys() <= {"own", "popular"}, callers.outcomes


@pytest.fixture
def offline(folder: Path) -> Iterator[Cluster]:
    """A cluster of the overlay `dev` with the pipeline, and a log of interactions on its volume."""
    work = folder / "work"
    work.mkdir()
    seen = [(user, (user * 7 + step * step) % 40) for user in range(60) for step in range(9)]
    table = {"user": [f"u{user}" for user, _ in seen], "item": [f"i{item}" for _, item in seen]}
    pl.DataFrame(table).write_parquet(work / "interactions.parquet")
    folders = ("overlays/dev", "components/pipeline", "components/prune", "jobs/publish")
    objects = [each for name in folders for each in built(name)]
    (folder / "redis").mkdir()
    with running_redis(folder / "redis", password=PASSWORD) as server:
        secrets = {"hotplate-publisher": {"password": PASSWORD}}
        servers = {("hotplate-redis", 6379): server.port}
        yield Cluster(objects, folder, secrets, {"hotplate-work": work}, servers)


def test_the_scheduled_run_the_one_off_publish_and_the_prune_do_their_work_as_their_manifests_say(
    offline: Cluster,
) -> None:
    for kind, name in (("CronJob", "hotplate-pipeline"), ("Job", "hotplate-publish"), ("CronJob", "hotplate-prune")):
        with running(offline, spec_of(list(offline.objects), kind, name), name) as pod:
            assert pod.wait(60) == 0, f"{name}: {pod.log}"


def test_an_edge_copies_what_is_live_and_a_measurement_measures_the_service(
    folder: Path, keys: tuple[str, dict[str, str]]
) -> None:
    (folder / "redis").mkdir()
    (folder / "store").mkdir()
    with running_redis(folder / "redis", password=PASSWORD) as server:
        asyncio.run(publish_to(url_of(server), {f"user:{user}": a_list("a") for user in range(USERS)}))
        secrets = {"hotplate-publisher": {"password": PASSWORD}, "hotplate-bench": {"key": keys[0]}}
        servers = {("central", 6379): server.port}
        objects = [*built("overlays/edge"), *built("jobs/bench")]
        cluster = Cluster(objects, folder, secrets, {"hotplate-store": folder / "store"}, servers)
        # Of another server than the example's, which nobody has.
        central = {"HOTPLATE_FROM": "redis://central:6379/0"}
        with running(cluster, spec_of(objects, "CronJob", "hotplate-copy"), "copy", central) as copy:
            assert copy.wait(60) == 0, copy.log
    with serving(folder, "--store", f"file://{folder}/store", "--keys", str(folder / "keys.json")) as service:
        cluster = Cluster(objects, folder, secrets, servers={("hotplate", 80): service.port})
        short = {"DURATION": "0.2s", "REPEAT": "1", "RATE": "50", "USERS": str(USERS)}
        environment = {f"HOTPLATE_BENCH_{name}": value for name, value in short.items()}
        with running(cluster, spec_of(objects, "Job", "hotplate-bench"), "bench", environment) as bench:
            bench.wait(60)  # on a busy machine it may be no evidence for anything, and says so
            assert '"kind":"http"' in bench.log.replace(" ", ""), bench.log
        metrics = service.admin("/metrics").body
        assert b'code="200"' in metrics
        assert b'code="401"' not in metrics


def check_rights(pod: Pod) -> None:
    """Hold a running pod to its spec: user, groups, capabilities, files, ports."""
    lines = Path(f"/proc/{pod.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert status["Groups"].split() == ["10001"]
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, 0, "1")
    for place, allowed in (("/tmp/x", True), ("/x", False), ("/etc/x", False), ("/opt/hotplate/x", False)):
        done = pod.execute(["/bin/sh", "-c", f"echo x > {place}"])
        assert (done.returncode == 0) == allowed, f"{place}: {done.stderr}"
    sockets = [line.split() for line in Path(f"/proc/{pod.pid}/net/tcp").read_text().splitlines()[1:]]
    listening = {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in sockets if state == LISTENS}
    assert listening >= {pod.port("http"), pod.port("admin"), pod.port("health")}
