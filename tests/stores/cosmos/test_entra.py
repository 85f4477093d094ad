"""A store that is reached by Entra ID alone: items by the account, containers by Azure Resource Manager, no key."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.arm import ArmContainers
from hotplate.stores.cosmos.containers import Containers, open_containers
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.cosmos.url import KEY, parse
from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import Level, Row
from tests.support.azure import PLACE, AzureAccount, Identity
from tests.support.command import failed, hotplate_process
from tests.support.service import LAUNCHER, a_list, ids, serving, until
from tests.support.stores import publish

ROWS = [Row("popular:", a_list("p1", "p2"))] + [Row(f"user:{n:03}", b"list of %d" % n) for n in range(100)]


@asynccontextmanager
async def opened(server: AzureAccount, url: str, *roles: str) -> AsyncIterator[CosmosStore]:
    """Open a store as `open_url` does, with an identity of *roles* instead of this machine's."""
    address = parse(url, {})
    client = SignedClient(address, credential=Identity(server, *roles))

    def containers() -> Containers:
        if address.arm is not None:
            return ArmContainers(address, address.arm, Identity(server, *roles))
        return open_containers(address)

    store = CosmosStore(address, client, containers)
    try:
        yield store
    finally:
        await store.close()


async def test_doctor_reports_rights_of_an_identity_without_changes(server: AzureAccount) -> None:
    url = server.url(f"db-{secrets.token_hex(4)}", **PLACE)
    async with opened(server, url, "contributor", "operator") as publisher:
        await publish(publisher, ROWS)
        before = await publisher.catalogue()
        publishers = {finding.subject: finding for finding in await publisher.examine()}
        elsewhere = server.url(parse(url, {}).database)
        for readers, part in ((url, "Built-in Data Contributor"), (elsewhere, "resource_group=")):
            async with opened(server, readers, "reader") as reader:
                publishing = {finding.subject: finding for finding in await reader.examine()}["may publish"]
            assert (publishing.level, part in publishing.sentence) == (Level.WARNING, True), publishing
        assert (await publisher.catalogue()).version == before.version
    assert {finding.level for finding in publishers.values()} == {Level.OK}


async def test_publishing_without_arm_parameters_is_refused_with_advice(server: AzureAccount) -> None:
    url = server.url(f"db-{secrets.token_hex(4)}")
    async with opened(server, url, "contributor", "operator") as store:
        with pytest.raises(StoreMisused, match="add subscription= and resource_group= to its URL") as refused:
            await publish(store, ROWS)
        assert "HOTPLATE_COSMOS_KEY" in str(refused.value)
        with pytest.raises(StoreMisused, match="add subscription= and resource_group= to its URL"):
            await store.incarnations()
        assert (await store.catalogue()).releases == ()


async def test_container_client_is_chosen_by_the_url(server: AzureAccount) -> None:
    """A key that may not change containers leaves them to ARM, where the URL names it."""
    address = parse(server.url("db", **PLACE), {KEY: server.key})
    for requested, expected in (
        (address, ArmContainers),
        (replace(address, arm=None), CosmosAccount),
    ):
        containers = open_containers(requested)
        assert isinstance(containers, expected)
        await containers.close()
    with pytest.raises(StoreMisused, match="add subscription= and resource_group= to its URL"):
        open_containers(replace(address, arm=None, key=None))


@pytest.mark.soak
def test_one_managed_identity_publishes_and_another_serves(
    server: AzureAccount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator's page of tokens stands for a managed identity's: azure-identity finds it by the environment."""
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\nbo,b,0.5\nbo,a,0.75\nal,a,0.25\n")
    monkeypatch.setenv("IDENTITY_HEADER", "any")
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    tokens = f"{server.endpoint}__emulation/token"
    database = f"db-{secrets.token_hex(4)}"
    here = server.url(database, **PLACE)
    failed(
        hotplate_process("import", lists, "--store", server.url(database), IDENTITY_ENDPOINT=tokens),
        "resource_group=",
        code=2,
    )
    failed(
        hotplate_process("import", lists, "--store", here, IDENTITY_ENDPOINT=f"{tokens}?roles=contributor"),
        "give it the role Cosmos DB Operator",
    )
    done = hotplate_process("import", lists, "--store", here, "--json", IDENTITY_ENDPOINT=tokens)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{tokens}?roles=reader")
    # Not forked: aiohttp reads SSL_CERT_FILE when it is imported.
    with serving(tmp_path, "--store", server.url(database), launcher=LAUNCHER) as service:
        until(service.is_ready)  # it listens, without a release, if the first read takes longer than 2 s
        answer = service.get("/v1/recommendations/bo")
        assert (answer.status, ids(answer)) == (200, ["a", "b"])
        assert service.status == "ready"
