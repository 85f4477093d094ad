"""Containers, with a key through azure-cosmos, and with a token through Azure Resource Manager."""

import secrets
from collections.abc import AsyncIterator

import pytest

from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.arm import ArmContainers
from hotplate.stores.cosmos.containers import Containers
from hotplate.stores.cosmos.errors import ContainerMissing, CosmosUnavailable
from hotplate.stores.cosmos.url import Offer, Throughput, parse
from hotplate.stores.store import ChargeCounter
from tests.support.azure import OPERATOR, PLACE, AzureAccount, Identity
from tests.support.cosmos_account import Account

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # the SDK's, of an emulator on loopback


@pytest.fixture(params=["key", "token"])
async def containers(
    request: pytest.FixtureRequest, cosmos_http: Account, server: AzureAccount, observer: ChargeCounter
) -> AsyncIterator[Containers]:
    """The containers of a database that does not exist."""
    database = f"d{secrets.token_hex(4)}"
    opened: Containers
    if request.param == "key":
        opened = CosmosAccount(cosmos_http.address(database), observer)
    else:
        address = parse(server.url(database, **PLACE), {})
        assert address.arm is not None
        opened = ArmContainers(address, address.arm, Identity(server, OPERATOR))
    yield opened
    await opened.close()
    await opened.close()


async def test_containers_are_created_listed_and_dropped(containers: Containers) -> None:
    for work in (containers.create_container("c", Throughput(400)), containers.list_containers()):
        with pytest.raises(ContainerMissing):  # without a database
            await work
    for _ in range(2):
        await containers.create_database()
    assert await containers.list_containers() == []
    for ru in (400, 900):
        await containers.create_container("c", Throughput(ru))
    assert await containers.offer("c") == Offer(Throughput(400), 400, pending=False)
    await containers.create_container("serverless", None)
    assert sorted(await containers.list_containers()) == ["c", "serverless"]
    for _ in range(2):
        await containers.delete_container("c")
    assert await containers.list_containers() == ["serverless"]


async def test_throughput_is_read_and_changed(containers: Containers, observer: ChargeCounter) -> None:
    await containers.create_database()
    for work in (containers.scale("c", Throughput(500)), containers.offer("c")):
        with pytest.raises(ContainerMissing):
            await work
    await containers.create_container("c", Throughput(4000))
    await containers.scale("c", Throughput(500))
    assert await containers.offer("c") == Offer(Throughput(500), 400, pending=False)
    await containers.create_container("auto", Throughput(4000, autoscale=True))
    await containers.scale("auto", Throughput(6000, autoscale=True))
    assert await containers.offer("auto") == Offer(Throughput(6000, autoscale=True), 1000, pending=False)
    assert observer.failures == []
    with pytest.raises(CosmosUnavailable, match="400 … 1000000") as error:
        await containers.scale("c", Throughput(300))
    assert error.value.kind == "refused"
