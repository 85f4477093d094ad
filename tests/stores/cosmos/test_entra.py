"""A store that is reached by Entra ID alone: items by the account, containers by Azure Resource Manager, no key."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from azure.core.credentials import AccessToken

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.cosmos.arm import ArmContainers
from hotplate.stores.cosmos.containers import Containers, open_containers
from hotplate.stores.cosmos.control import AccountContainers
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.store import CosmosStore, open_url
from hotplate.stores.cosmos.url import KEY, parse
from hotplate.stores.encoding import OFFSET_BYTES, Checksum
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.lifecycle import activate, prune, publish, rollback
from hotplate.stores.store import Level, Plan, Row
from hotplate.stores.verification import verify
from tests.support.command import failed, hotplate_process
from tests.support.cosmos_server import Emulator, emulator
from tests.support.entra import PLACE, Identity, token_of, url_of
from tests.support.service import a_list, serving
from tests.support.stores import batches, ref_of

ROWS = [Row("popular:", a_list("p1", "p2"))] + [Row(f"user:{n:03}", b"list of %d" % n) for n in range(100)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    certificate = tmp_path_factory.mktemp("entra") / "entra.pem"
    with emulator("--tls", "--certificate", str(certificate), "--entra-issuer") as running:
        yield replace(running, certificate=certificate)


@asynccontextmanager
async def opened(server: Emulator, url: str, roles: str) -> AsyncIterator[CosmosStore]:
    """Open a store as `open_url` does, with an identity of *roles* in the place of this machine's."""
    address = parse(url, {})
    client = RestClient(address, credential=Identity(server, roles))

    def containers() -> Containers:
        if address.arm is not None:
            return ArmContainers(address, address.arm, Identity(server, roles))
        return open_containers(address, client)

    store = CosmosStore(address, client, containers)
    try:
        yield store
    finally:
        await store.close()


async def release_of(store: CosmosStore, *, live: bool = True) -> ReleaseId:
    return ((await publish(store, batches(ROWS), plan=Plan(len(ROWS), 10_000), about={}, live=live)).manifest).release


async def lists(store: CosmosStore, release: ReleaseId, keys: Sequence[str]) -> list[bytes | None]:
    """Read lists as they were published."""
    slots, opened = await store.get_many(await ref_of(store, release), keys), Checksum(release).open
    read = [slot for slot in slots if not isinstance(slot, StoreError)]
    return [None if slot is None else opened(key, slot)[OFFSET_BYTES:] for key, slot in zip(keys, read, strict=True)]


@pytest.mark.soak
async def test_releases_live_their_whole_life_with_tokens_only(server: Emulator) -> None:
    url = url_of(server, f"db-{secrets.token_hex(4)}", ru=1000, **PLACE)
    async with opened(server, url, "contributor,operator") as publisher:
        first = await release_of(publisher)
        second = await release_of(publisher, live=False)
        await activate(publisher, second)
        assert await rollback(publisher) == first
        await activate(publisher, second)
        await verify(publisher, await ref_of(publisher, second))
        assert await publisher.warnings() == []
        assert len(await publisher.incarnations()) == 2
        assert await prune(publisher, keep=0, grace_s=0) == [first]
        assert await publisher.incarnations() == [(await publisher.catalogue()).releases[0].incarnation]
        assert (await publisher.catalogue()).live == second
    reading = url_of(server, parse(url, {}).database)
    async with opened(server, reading, "reader") as reader:
        assert await lists(reader, second, ["user:007", "user:absent"]) == [b"list of 7", None]
        assert await reader.warnings() == []


async def test_the_doctor_says_what_an_identity_may_do_and_changes_nothing(server: Emulator) -> None:
    url = url_of(server, f"db-{secrets.token_hex(4)}", **PLACE)
    async with opened(server, url, "contributor,operator") as publisher:
        await release_of(publisher)
        before = await publisher.catalogue()
        publishers = {each.subject: each for each in await publisher.examine()}
        async with opened(server, url_of(server, parse(url, {}).database), "reader") as reader:
            readers = {each.subject: each for each in await reader.examine()}
        assert (await publisher.catalogue()).version == before.version
    assert {each.level for each in publishers.values()} == {Level.OK}
    for subject, part in (("may publish", "Cosmos DB Built-in Data Contributor"), ("containers", "resource_group=")):
        assert (readers[subject].level, part in readers[subject].sentence) == (Level.WARNING, True), readers[subject]


async def test_without_a_place_at_arm_publishing_is_refused_with_what_to_add(server: Emulator) -> None:
    url = url_of(server, f"db-{secrets.token_hex(4)}")
    async with opened(server, url, "contributor,operator") as store:
        with pytest.raises(StoreMisused, match="add subscription= and resource_group= to its URL") as refused:
            await release_of(store)
        assert "HOTPLATE_COSMOS_KEY" in str(refused.value)
        with pytest.raises(StoreMisused, match="add subscription= and resource_group= to its URL"):
            await store.incarnations()
        assert (await store.catalogue()).releases == ()


async def test_the_error_of_an_identity_that_may_only_read_names_the_role(server: Emulator) -> None:
    url = url_of(server, f"db-{secrets.token_hex(4)}", **PLACE)
    async with opened(server, url, "reader,operator") as store:
        with pytest.raises(CosmosUnavailable, match="Cosmos DB Built-in Data Contributor"):
            await release_of(store)


async def test_a_key_goes_to_the_account_for_everything(server: Emulator) -> None:
    store = open_url(f"cosmos+{server.endpoint}db-{secrets.token_hex(4)}?ca={server.certificate}")
    try:
        assert await lists(store, await release_of(store), ["user:001"]) == [b"list of 1"]
    finally:
        await store.close()


async def test_who_makes_containers_follows_the_url(server: Emulator) -> None:
    """A key that may not change containers leaves them to ARM, where the URL names it."""
    address = parse(url_of(server, "db", **PLACE), {KEY: server.key})
    client = RestClient(address)
    for requested, expected in (
        (address, ArmContainers),
        (replace(address, arm=None), AccountContainers),
    ):
        containers = open_containers(requested, client)
        assert isinstance(containers, expected)
        await containers.close()
    with pytest.raises(StoreMisused, match="add subscription= and resource_group= to its URL"):
        open_containers(replace(address, arm=None, key=None), client)
    await client.close()


async def test_a_token_that_the_account_finds_expired_is_renewed_at_once(server: Emulator) -> None:
    """Clocks differ: the credential says that its token lasts, the account that it has ended."""
    moved_s = 0.0

    class Stale(Identity):
        async def get_token(self, *scopes: str, **_options: object) -> AccessToken:
            self.scopes.append(scopes[0])
            given = await asyncio.to_thread(token_of, server, scopes[0], "", -5 if len(self.scopes) == 1 else 3600)
            return AccessToken(given.token, int(time.time()) + 3600)

    identity = Stale(server)
    address = parse(url_of(server, "db"), {})
    client = RestClient(address, credential=identity, clock=lambda: time.time() + moved_s)
    try:
        with pytest.raises(CosmosUnavailable, match="expired since") as refused:
            await client.account()
        assert refused.value.kind == "unauthorized"
        moved_s = 60.0  # no new token is requested right after the last
        assert (await client.account()).regions
        assert len(identity.scopes) == 2
    finally:
        await client.close()


@pytest.mark.soak
def test_a_managed_identity_publishes_and_another_one_serves(
    server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator's page of tokens stands for a managed identity's: azure-identity finds it by the environment."""
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\nbo,b,0.5\nbo,a,0.75\nal,a,0.25\n")
    monkeypatch.setenv("IDENTITY_HEADER", "any")
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    monkeypatch.setenv("AZURE_SUBSCRIPTION_ID", PLACE["subscription"])
    tokens = f"{server.endpoint}__emulation/token"
    database = f"db-{secrets.token_hex(4)}"
    here = url_of(server, database, resource_group=PLACE["resource_group"])
    failed(
        hotplate_process("import", lists, "--store", url_of(server, database), IDENTITY_ENDPOINT=tokens),
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
    with serving(tmp_path, "--store", url_of(server, database)) as service:
        answer = service.get("/v1/recommendations/bo")
        assert (answer.status, [item["id"] for item in answer.json["items"]]) == (200, ["a", "b"])
        assert service.get("/readyz").json["status"] == "ready"
