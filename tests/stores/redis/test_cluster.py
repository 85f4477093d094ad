"""The store in a cluster: the contract, and what a cluster has beyond one server, on real nodes."""

import secrets

import pytest

from hotplate.testing import OpenStore, StoreContract
from stores.connect import connect
from tests.support.redis_cluster import RedisCluster


class TestCluster(StoreContract):
    @pytest.fixture(params=["redis+cluster", "rediss+cluster"])
    def open_store(self, request: pytest.FixtureRequest, redis_cluster: RedisCluster) -> OpenStore:
        """Open handles on a deployment of its own."""
        url = redis_cluster.url(request.param, secrets.token_hex(4))
        return lambda: connect(url)
