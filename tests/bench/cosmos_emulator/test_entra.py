"""What tokens may do: items at the account, containers at ARM, and neither with a token for the other."""

from typing import Any

import orjson
import pytest

from hotplate.bench.cosmos_emulator.arm import OPERATION_S, RESOURCE_GROUP, SUBSCRIPTION, ResourceManager
from hotplate.bench.cosmos_emulator.auth import (
    ARM_AUDIENCE,
    CONTRIBUTOR,
    DATA_AUDIENCE,
    OPERATOR,
    READER,
    ROLES,
    WELL_KNOWN_KEY,
    Authenticator,
    Issuer,
)
from hotplate.bench.cosmos_emulator.http import HttpResponse, Request
from tests.support.clock import FakeClock
from tests.support.cosmos_server import Direct, substatus

GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{RESOURCE_GROUP}"
ACCOUNT = f"{GROUP}/providers/Microsoft.DocumentDB/databaseAccounts/acct"
CONTAINER = {"properties": {"resource": {"id": "r", "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2}}}}


class Entra(Direct):
    """The service, ARM and an issuer of tokens for both, on a clock that the test holds."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.issuer = Issuer()
        self.service.authenticator = Authenticator(WELL_KNOWN_KEY, self.issuer)
        self.resource_manager = ResourceManager(self.service)

    def token(self, *roles: str, life_s: float = 3600, scope: str = DATA_AUDIENCE) -> str:
        made = self.issuer.issue(self.clock(), life_s, scope=scope, roles=roles or ROLES)
        return str(made["access_token"])

    def data(self, token: str, method: str, path: str, body: object = None, **headers: str) -> HttpResponse:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given |= {"x-ms-documentdb-partitionkey": '["a"]', "authorization": f"type%3Daad%26ver%3D1.0%26sig%3D{token}"}
        return self.request(method, path, body, given)

    def arm(self, method: str, path: str, body: object = None, *, token: str | None = None) -> HttpResponse:
        bearer = self.token(scope=ARM_AUDIENCE) if token is None else token
        headers = {b"authorization": f"Bearer {bearer}".encode(), b"host": b"acct.example:443"}
        path, _, query = path.partition("?")
        raw = b"" if body is None else orjson.dumps(body)
        return self.resource_manager.answer(
            Request(method, path, headers, raw, scheme="https", query=query or "api-version=2026-03-15")
        )


@pytest.fixture
def entra(clock: FakeClock) -> Entra:
    return Entra(clock)


def error_of(response: HttpResponse) -> tuple[int, str]:
    body: dict[str, Any] = orjson.loads(response.body)
    return response.status, str(body.get("error", body)["code"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/dbs"),
        ("DELETE", "/dbs/d/"),
        ("POST", "/dbs/d/colls/"),
        ("PUT", "/dbs/d/colls/c/"),
        ("DELETE", "/dbs/d/colls/c/"),
        ("POST", "/offers"),
        ("GET", "/offers/"),
        ("GET", "/offers/x/"),
        ("PUT", "/offers/x/"),
    ],
)
def test_no_token_may_create_scale_or_delete_anything_at_the_account(entra: Entra, method: str, path: str) -> None:
    response = entra.data(entra.token(), method, path, {"id": "new"})
    assert substatus(response) == (403, 5300)
    request = f"[{method} {path.rstrip('/')}]"
    assert f"The given request {request} cannot be authorized by AAD token in data plane" in response.body.decode()


def test_a_contributor_reads_and_writes_items_and_a_reader_only_reads(entra: Entra) -> None:
    writer, reader = entra.token(CONTRIBUTOR), entra.token(READER)
    docs, item = "/dbs/d/colls/c/docs/", "/dbs/d/colls/c/docs/a/"
    query = {"query": "SELECT * FROM c"}
    query_headers = {"content_type": "application/query+json", "x_ms_documentdb_isquery": "true"}
    assert entra.data(writer, "POST", docs, {"id": "a"}).status == 201
    assert substatus(entra.data(reader, "POST", docs, {"id": "b"})) == (403, 5302)
    assert substatus(entra.data(reader, "PUT", item, {"id": "a"})) == (403, 5302)
    assert substatus(entra.data(reader, "DELETE", item)) == (403, 5302)
    for token in (reader, writer):
        assert entra.data(token, "GET", item).status == 200
        assert entra.data(token, "POST", docs, query, **query_headers).status == 200
        for path in ("/", "/dbs/d/", "/dbs/d/colls/c/", "/dbs/d/colls/", "/dbs/d/colls/c/pkranges/"):
            assert entra.data(token, "GET", path).status == 200, path
    assert entra.data(writer, "DELETE", item).status == 204
    operator = entra.token(OPERATOR)
    assert substatus(entra.data(operator, "GET", "/")) == (403, 5301)
    assert substatus(entra.data(operator, "GET", item)) == (403, 5302)


def test_a_token_that_has_expired_or_is_for_something_else_is_refused_with_its_reason(entra: Entra) -> None:
    assert substatus(entra.data(entra.token(life_s=0), "GET", "/")) == (401, 5006)
    assert substatus(entra.data(entra.token(scope=ARM_AUDIENCE), "GET", "/")) == (401, 5008)
    assert substatus(entra.data("a.b.c", "GET", "/")) == (401, 5004)
    assert error_of(entra.arm("GET", f"{ACCOUNT}/sqlDatabases/d", token=entra.token())) == (
        401,
        "InvalidAuthenticationToken",
    )


def test_arm_creates_scales_and_deletes_a_container_and_reports_it_later(entra: Entra, clock: FakeClock) -> None:
    path = f"{ACCOUNT}/sqlDatabases/d/containers/r"
    assert error_of(entra.arm("GET", path)) == (404, "NotFound")
    body = {"properties": {**CONTAINER["properties"], "options": {"throughput": 1000}}}
    accepted = entra.arm("PUT", path, body)
    assert accepted.status == 202
    at = "https://acct.example:443"
    status = accepted.headers["azure-asyncoperation"].removeprefix(at)
    assert orjson.loads(entra.arm("GET", status).body) == {"status": "Dequeued"}
    clock.now += OPERATION_S
    assert orjson.loads(entra.arm("GET", status).body) == {"status": "Succeeded"}
    assert orjson.loads(entra.arm("GET", path).body)["properties"]["resource"]["id"] == "r"
    throughput = f"{path}/throughputSettings/default"
    assert orjson.loads(entra.arm("GET", throughput).body)["properties"]["resource"] == {
        "throughput": 1000,
        "minimumThroughput": "400",
    }
    assert entra.arm("PUT", throughput, {"properties": {"resource": {"throughput": 600}}}).status == 202
    assert orjson.loads(entra.arm("GET", throughput).body)["properties"]["resource"]["throughput"] == 600
    assert entra.arm("DELETE", path).status == 202
    assert entra.arm("DELETE", path).status == 204
    assert error_of(entra.arm("GET", path)) == (404, "NotFound")


def test_a_change_that_fails_is_accepted_and_reported_as_failed(entra: Entra, clock: FakeClock) -> None:
    path = f"{ACCOUNT}/sqlDatabases/d/containers/c/throughputSettings/default"
    accepted = entra.arm("PUT", path, {"properties": {"resource": {"throughput": 401}}})
    clock.now += OPERATION_S
    operation = orjson.loads(entra.arm("GET", accepted.headers["azure-asyncoperation"][24:]).body)
    assert (operation["status"], operation["error"]["code"]) == ("Failed", "BadRequest")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (SUBSCRIPTION, "11111111-0000-0000-0000-000000000000", (404, "SubscriptionNotFound")),
        (RESOURCE_GROUP, "other", (404, "ResourceGroupNotFound")),
        ("/acct/", "/other/", (404, "ResourceNotFound")),
        ("/sqlDatabases/d", "/tables/d", (404, "InvalidResourceType")),
        ("/sqlDatabases/d", "/sqlDatabases/d?x=1", (400, "MissingApiVersionParameter")),
    ],
)
def test_arm_names_what_is_wrong_in_a_path(entra: Entra, old: str, new: str, expected: tuple[int, str]) -> None:
    assert error_of(entra.arm("GET", f"{ACCOUNT}/sqlDatabases/d".replace(old, new))) == expected


def test_arm_takes_neither_a_key_nor_a_role_for_data(entra: Entra) -> None:
    path = f"{ACCOUNT}/sqlDatabases/d"
    token = entra.token(CONTRIBUTOR, scope=ARM_AUDIENCE)
    refused = entra.arm("GET", path, token=token)
    assert error_of(refused) == (403, "AuthorizationFailed")
    assert b"'Microsoft.DocumentDB/databaseAccounts/sqlDatabases/read'" in refused.body
    assert error_of(ResourceManager(entra.service).answer(Request("GET", path, {}))) == (401, "AuthenticationFailed")


def test_arm_has_faults_of_its_own(entra: Entra, clock: FakeClock) -> None:
    faults = entra.service.faults
    faults.replace([{"kind": "throttle"}], clock())
    assert entra.arm("GET", f"{ACCOUNT}/sqlDatabases/d").status == 200
    faults.replace([{"kind": "throttle", "operation": "manage database", "retry_after_ms": 1500}], clock())
    response = entra.arm("GET", f"{ACCOUNT}/sqlDatabases/d")
    assert (response.status, response.headers["retry-after"]) == (429, "2")
