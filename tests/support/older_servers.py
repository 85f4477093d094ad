"""Redis deployments with servers restarted from older snapshots, as after a crash without an append-only file."""

import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from tests.support.redis_cluster import RedisCluster, running_cluster
from tests.support.redis_sentinel import SentinelDeployment, sentinel_deployment
from tests.support.redis_server import RedisServer, running
from tests.support.service import until

# Snapshots of a server that are kept.
KEPT = 3


class Snapshots:
    """Saves the data of a server, and restarts it with them."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self._saved = list[Path]()
        self._count = 0

    def save(self) -> None:
        """Keep what the server holds now."""
        until(self._is_saved, "a copy for a replica does not end")
        self._count += 1
        path = self.server.folder / f"older-{self._count}.rdb"
        shutil.copy(self.server.folder / "dump.rdb", path)
        self._saved = [*self._saved[-KEPT + 1 :], path]

    def _is_saved(self) -> bool:
        with suppress(redis.ResponseError):  # a copy for a replica is being made
            self.server.execute_command("SAVE")
            return True
        return False

    def restart(self, draws: random.Random | None = None) -> None:
        """Restart the server with its last snapshot, or with one that is drawn."""
        saved = self._saved[-1] if draws is None else draws.choice(self._saved)
        self.server.kill()
        shutil.copy(saved, self.server.folder / "dump.rdb")
        self.server.start()


class AgeingDeployment(ABC):
    """A deployment and its faults; calls block."""

    url: str

    @abstractmethod
    def save(self, draws: random.Random) -> None:
        """Save a snapshot; of one server, if each has separate data."""

    @abstractmethod
    def strike(self, draws: random.Random) -> None:
        """Restart a server with an older snapshot, or replace it; return once the deployment is well."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Return all keys."""


class OneServer(AgeingDeployment):
    """One server."""

    def __init__(self, server: RedisServer) -> None:
        self.url = server.url()
        self._snapshots = Snapshots(server)

    def save(self, draws: random.Random) -> None:
        del draws
        self._snapshots.save()

    def strike(self, draws: random.Random) -> None:
        self._snapshots.restart(draws)

    def keys(self) -> list[str]:
        keys: list[str] = self._snapshots.server.execute_command("KEYS", "*")
        return keys


class ThreeNodes(AgeingDeployment):
    """A cluster, each node of which is as old as its own snapshot."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.url = cluster.url()
        self._cluster = cluster
        self._snapshots = [Snapshots(node.server) for node in cluster.primaries]
        for snapshots in self._snapshots:
            snapshots.save()

    def save(self, draws: random.Random) -> None:
        draws.choice(self._snapshots).save()

    def strike(self, draws: random.Random) -> None:
        draws.choice(self._snapshots).restart(draws)
        self._cluster.wait_until(self._cluster.every_primary_has_a_replica)

    def keys(self) -> list[str]:
        return self._cluster.keys("*")


class BehindSentinels(AgeingDeployment):
    """A primary, which is restarted or replaced by a failover."""

    def __init__(self, deployment: SentinelDeployment) -> None:
        self.url = deployment.url()
        self._deployment = deployment
        self._snapshots = {server.port: Snapshots(server) for server in deployment.servers}

    def save(self, draws: random.Random) -> None:
        del draws
        for snapshots in self._snapshots.values():
            snapshots.save()

    def strike(self, draws: random.Random) -> None:
        if draws.random() < 0.5:
            self._deployment.fail_over()
        else:
            primary = self._deployment.primary
            if "--replicaof" in primary.options:  # as it began
                place = primary.options.index("--replicaof")
                primary.options = primary.options[:place] + primary.options[place + 3 :]
            self._snapshots[primary.port].restart(draws)
        until(self._deployment.is_healthy, "the deployment does not recover")

    def keys(self) -> list[str]:
        keys: list[str] = self._deployment.primary.execute_command("KEYS", "*")
        return keys


@contextmanager
def ageing(kind: str, folder: Path) -> Iterator[AgeingDeployment]:
    """Run a deployment, `server`, `cluster` or `sentinel`, until the block ends."""
    if kind == "server":
        with running(folder) as server:
            yield OneServer(server)
    elif kind == "cluster":
        with running_cluster(folder) as cluster:
            yield ThreeNodes(cluster)
    else:
        with sentinel_deployment(folder) as deployment:
            yield BehindSentinels(deployment)
