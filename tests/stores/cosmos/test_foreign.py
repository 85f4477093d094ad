"""Hits are read from an emulator that is not ours: `@vercel/cosmosdb-server` of npm, unmodified.

How far it goes: it describes the account, makes databases and containers, creates, upserts, reads, and replaces by
version (its etags have no quotes). Where it stops, which is why it judges no more than this:

- an item that is not there is a 500, not a 404, and a container that is not there a 404 that gives no reason;
- offers are "no route": throughput can be neither read nor changed, and none is enforced;
- each answer is charged 1 RU, whatever it was, and its connection closed;
- no 429s, no session tokens, no second region, and any key is let in.

Its own certificate ended in January 2021 and names neither localhost nor an address, so that nobody who verifies could
believe it. It is given one of ours, which its own `createHttpsServer` takes.
"""

import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from hotplate.bench.cosmos_emulator.server import make_certificate
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.rows import container_of, name_of, to_item, value_of
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Throughput, parse
from tests.support.npm import installed
from tests.support.stores import ref

SERVER = """
const {readFileSync} = require("fs");
const own = {cert: readFileSync(process.argv[1]), key: readFileSync(process.argv[2])};
const server = require("@vercel/cosmosdb-server").createHttpsServer(own);
server.listen(0, () => console.log(server.address().port));
"""
TIMEOUT_S = 10.0
pytestmark = pytest.mark.soak  # 446 packages of npm
RELEASE = ReleaseId("20261120T064200Z-7f3a")
ROWS = {
    "user:1": b'{"id":"i1","score":0.5,"title":"\xc3\xbc \\" \\\\"}',
    "user:ü/€ ?#": "ü€\n𝄞".encode(),
    "item:a": bytes(range(256)) * 40,
    "popular:": b"",
}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the server with a certificate that can be verified."""
    folder = installed(request.config, "@vercel/cosmosdb-server", "1.0.1")
    made = tmp_path_factory.mktemp("tls")
    certificate, key = make_certificate()
    (made / "ca.pem").write_bytes(certificate)
    (made / "key.pem").write_bytes(key)
    command = ["node", "-e", SERVER, str(made / "ca.pem"), str(made / "key.pem")]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield f"cosmos+https://localhost:{port}/%s?ca={made / 'ca.pem'}"
        finally:
            process.terminate()


@pytest.fixture
def url(server: str) -> str:
    """Name a database of its own."""
    return server % secrets.token_hex(4)


@pytest.fixture
async def client(url: str) -> AsyncIterator[SignedClient]:
    opened = SignedClient(parse(url, {}))
    yield opened
    await opened.close()


@pytest.fixture
async def containers(url: str) -> AsyncIterator[CosmosAccount]:
    made = CosmosAccount(parse(url, {}))
    yield made
    await made.close()


async def test_hits_are_read_byte_by_byte(client: SignedClient, containers: CosmosAccount, url: str) -> None:
    container = container_of(ref(RELEASE))
    for _ in range(2):
        await containers.create_database()
        await containers.create_container(container, Throughput(400))
    for key, value in ROWS.items():
        assert (await client.create(container, to_item(name_of(key), value))).done
    for key, value in ROWS.items():
        nearest, fresh = (
            await client.read(container, name_of(key), TIMEOUT_S),
            (await client.read_fresh(container, name_of(key))).item,
        )
        assert nearest is not None
        assert fresh is not None
        assert value_of(nearest) == value_of(fresh) == value
    store = connect(url)
    assert await store.get_many(ref(RELEASE), list(ROWS)) == list(ROWS.values())
    await store.close()
