"""Azure-cosmos: its control plane, its reads by `?client=sdk`, and what it raises in our words."""

import ast
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from hotplate.stores.connect import connect
from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.errors import ContainerMissing, CosmosUnavailable
from hotplate.stores.cosmos.url import Offer, Throughput, parse
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.store import Row, Store
from hotplate.testing import FIRST, OpenStore, StoreContract, ref, write
from tests.support.cosmos_account import Account, Counted
from tests.support.cosmos_raw import CUT, ScriptedServer, answer, refusal, scripted
from tests.support.paths import ROOT

ROWS = [Row("popular:", b'{"id":"p"}'), Row("user:1", b'{"id":"a"}')]
OFFER: dict[str, object] = {"id": "oR", "_self": "offers/oR/"}
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # the SDK's, of an emulator on loopback


@pytest.fixture
async def containers(cosmos_http: Account, observer: Counted) -> AsyncIterator[CosmosAccount]:
    """A database of its own."""
    made = CosmosAccount(cosmos_http.address(f"d{secrets.token_hex(4)}"), observer)
    for _ in range(2):
        await made.create_database()
    yield made
    await made.close()
    await made.close()


@pytest.fixture
async def scripted_account(raw: ScriptedServer, observer: Counted) -> AsyncIterator[CosmosAccount]:
    """An account that responds as the test says."""
    made = CosmosAccount(parse(f"cosmos+http://127.0.0.1:{raw.port}/d", {}), observer)
    yield made
    await made.close()


async def test_containers_are_made_listed_and_dropped_once(containers: CosmosAccount) -> None:
    assert await containers.list_containers() == []
    for _ in range(2):
        await containers.create_container("c", Throughput(400))
    await containers.create_container("serverless", None)
    assert sorted(await containers.list_containers()) == ["c", "serverless"]
    for _ in range(2):
        await containers.delete_container("c")
    assert await containers.list_containers() == ["serverless"]


async def test_throughput_is_read_and_changed(containers: CosmosAccount, observer: Counted) -> None:
    await containers.create_container("c", Throughput(4000))
    assert await containers.offer("c") == Offer(Throughput(4000), 400, pending=False)
    await containers.scale("c", Throughput(500))
    assert await containers.offer("c") == Offer(Throughput(500), 400, pending=False)
    await containers.create_container("auto", Throughput(4000, autoscale=True))
    await containers.scale("auto", Throughput(6000, autoscale=True))
    assert await containers.offer("auto") == Offer(Throughput(6000, autoscale=True), 1000, pending=False)
    assert observer.kinds == []
    with pytest.raises(CosmosUnavailable, match="400 … 1000000") as error:
        await containers.scale("c", Throughput(300))
    assert error.value.kind == "refused"


async def test_what_is_not_there_is_reported_as_missing(containers: CosmosAccount, observer: Counted) -> None:
    for work in (
        containers.scale("gone", Throughput(500)),
        containers.offer("gone"),
        containers.read("gone", "x", 5.0),
    ):
        with pytest.raises(ContainerMissing):
            await work
    assert observer.kinds == []


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (answer(201, b"<html>"), "malformed"),
        (b"HTTP/1.1 200" + CUT, "reset"),
        (CUT, "reset"),
        (answer(502, b"<html>"), "unavailable"),
        (answer(503, b""), "unavailable"),
        (refusal(403, 5300), "forbidden"),
        (refusal(401, 0), "unauthorized"),
    ],
)
async def test_what_no_service_answers_is_an_error(
    raw: ScriptedServer, scripted_account: CosmosAccount, observer: Counted, response: bytes, kind: str
) -> None:
    raw.responses = [response]
    with pytest.raises(CosmosUnavailable) as error:
        await scripted_account.create_database()
    assert (error.value.kind, observer.kinds) == (kind, [kind])


async def test_containers_are_made_in_the_region_that_takes_writes() -> None:
    async with scripted(answer(201, b'{"id":"d"}')) as there, scripted() as here:
        location = [{"name": "There", "databaseAccountEndpoint": f"http://127.0.0.1:{there.port}/"}]
        here.properties = there.properties = {"writableLocations": location}
        account = CosmosAccount(parse(f"cosmos+http://127.0.0.1:{here.port}/d", {}))
        await account.create_database()
        assert b"POST /dbs HTTP/1.1" in b"".join(there.heard)
        assert b"POST" not in b"".join(here.heard)
        await account.close()


def offered(content: dict[str, object], headers: bytes = b"") -> list[bytes]:
    offer = OFFER | {"content": content}
    container = answer(200, b'{"id":"c","_rid":"r","_self":"dbs/x/colls/y/"}')
    return [container, answer(200, orjson.dumps({"Offers": [offer]})), answer(200, orjson.dumps(offer), headers)]


@pytest.mark.parametrize(
    ("content", "headers", "minimum", "pending"),
    [
        ({}, b"", 400, False),
        ({}, b"x-ms-offer-replace-pending: True\r\n", 400, True),
        ({}, b"x-ms-cosmos-min-throughput: 600\r\n", 600, False),
        ({"offerMinimumThroughputParameters": {"minThroughput": 700}}, b"", 700, False),
    ],
)
async def test_an_offer_has_its_minimum_and_whether_a_change_is_pending(
    raw: ScriptedServer,
    scripted_account: CosmosAccount,
    content: dict[str, object],
    headers: bytes,
    minimum: int,
    *,
    pending: bool,
) -> None:
    raw.responses = offered({"offerThroughput": 500} | content, headers)
    assert await scripted_account.offer("c") == Offer(Throughput(500), minimum, pending)


async def test_a_serverless_account_has_no_offers(
    raw: ScriptedServer, scripted_account: CosmosAccount, observer: Counted
) -> None:
    message = "Reading or replacing offers is not supported for serverless accounts."
    raw.responses = [offered({})[0], refusal(400, 0, message)]
    assert await scripted_account.offer("c") is None
    assert observer.kinds == []


@pytest.mark.soak
class TestThroughTheSdk(StoreContract):
    @pytest.fixture
    def open_store(self, cosmos_http: Account) -> OpenStore:
        url = cosmos_http.url(secrets.token_hex(4), ru="30000", client="sdk")
        return lambda: connect(url)


@pytest.fixture
async def stored(cosmos_http: Account) -> AsyncIterator[tuple[Store, Counted]]:
    counted = Counted()
    store = connect(cosmos_http.url(secrets.token_hex(4), ru="1000", client="sdk"), counted)
    await write(store, FIRST, ROWS)
    yield store, counted
    await store.close()


async def test_the_sdk_reads_lists_and_absent_keys(stored: tuple[Store, Counted], cosmos_http: Account) -> None:
    store, counted = stored
    found = await store.get_many(ref(FIRST), ["user:1", "user:2", "popular:"], timeout_s=5.0)
    assert found == [ROWS[1].value, None, ROWS[0].value]
    before_ru, before = counted.ru, cosmos_http.requests("read item")
    assert await store.get_many(ref(FIRST), ["user:1"], timeout_s=5.0) == [ROWS[1].value]
    assert counted.ru == before_ru + 1.0
    assert cosmos_http.requests("read item") == before + 1


async def test_what_is_refused_and_what_is_late_fails_the_slot(
    stored: tuple[Store, Counted], cosmos_http: Account
) -> None:
    store, counted = stored
    await store.get_many(ref(FIRST), ["user:1"], timeout_s=5.0)
    cosmos_http.inject_faults({"operation": "read item", "kind": "forbidden"})
    try:
        with pytest.raises(StoreUnavailable, match="forbids this"):
            await store.get_many(ref(FIRST), ["user:1"], timeout_s=5.0)
    finally:
        cosmos_http.inject_faults()
    assert counted.kinds[-1] == "forbidden"
    with pytest.raises(StoreUnavailable, match="in time"):
        await store.get_many(ref(FIRST), ["user:1"], timeout_s=1e-6)


def test_another_client_is_refused() -> None:
    with pytest.raises(StoreMisused, match=r"client=fast .* is not valid; write signed or sdk"):
        connect("cosmos://account/database?client=fast")


def private_names(module: Path) -> set[str]:
    """Return imports of private modules and private attributes of anything but the module's own objects."""
    tree = ast.parse(module.read_text())
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }
    used = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
    return imported | used


def test_no_private_name_of_a_library_is_used() -> None:
    modules = [*(ROOT / "stores/cosmos").glob("*.py"), ROOT / "stores/http1.py"]
    assert {str(module): names for module in modules if (names := private_names(module))} == {}
