"""Azure around the emulated account: tokens of Entra ID with roles, and containers through Azure Resource Manager.

https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac describes the roles,
https://learn.microsoft.com/rest/api/cosmos-db-resource-provider/sql-resources the resources. Changes are accepted with
202 and polled for: https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

import base64
import hmac
import re
import secrets
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson
from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import ClientAuthenticationError

from hotplate.bench.cosmos_emulator import resources
from hotplate.bench.cosmos_emulator.faults import ERRORS
from hotplate.bench.cosmos_emulator.messages import CODES, HttpError, HttpHandler, HttpResponse, Request
from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.cosmos_emulator.service import Authenticator, Service
from hotplate.stores.cosmos.url import EMULATOR_KEY
from tests.support.cosmos_server import Emulator, emulator_thread

TOKEN_LIFE_S = 3600
# The audience of a token: the account's own endpoint, or Azure Resource Manager.
DATA_AUDIENCE = "https://cosmos.azure.com"
ARM_AUDIENCE = "https://management.azure.com"

# Cosmos DB Built-in Data Reader and Data Contributor, at the account's endpoint; Cosmos DB Operator, at ARM.
READER, CONTRIBUTOR, OPERATOR = ROLES = ("reader", "contributor", "operator")

ACCOUNT = "Microsoft.DocumentDB/databaseAccounts"
ITEMS = f"{ACCOUNT}/sqlDatabases/containers/items"
WRITES = ("create", "upsert", "replace", "delete")
# The action that each operation on items needs; all other operations that only read need `readMetadata`.
# https://learn.microsoft.com/azure/cosmos-db/reference-data-plane-security
ACTIONS = {
    "read item": f"{ITEMS}/read",
    "list items": f"{ACCOUNT}/sqlDatabases/containers/readChangeFeed",
    "query items": f"{ACCOUNT}/sqlDatabases/containers/executeQuery",
    **{f"{verb} item": f"{ITEMS}/{verb}" for verb in WRITES},
}

# Substatus codes of Entra ID and of roles.
TOKEN_SIGNATURE_INVALID, TOKEN_EXPIRED, TOKEN_AUDIENCE_INVALID = 5004, 5006, 5008
TOKEN_NOT_AUTHORIZED, METADATA_PERMISSION_MISSING, DATA_PERMISSION_MISSING = 5300, 5301, 5302

# ARM's record of the emulated account; its name is the first label of the host.
PLACE = {"subscription": "00000000-0000-0000-0000-000000000000", "resource_group": "emulation"}
# Seconds until a change is reported as done; it is done at once.
OPERATION_S = 0.2

PREFIX = "/subscriptions/"
RESOURCE = re.compile(
    rf"(?P<id>{PREFIX}(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.DocumentDB"
    r"/databaseAccounts/(?P<account>[^/]+)/sqlDatabases/(?P<database>[^/]+)(?:/containers/(?P<container>[^/]+)"
    r"(?P<throughput>/throughputSettings/default)?|(?P<feed>/containers))?)",
    re.IGNORECASE,
)
STATUS = re.compile(rf"{PREFIX}[^/]+/providers/Microsoft\.DocumentDB/locations/[^/]+/operationsStatus/([^/]+)")
METHODS = {"GET": "read", "PUT": "write", "DELETE": "delete"}
TYPES = {
    "database": f"{ACCOUNT}/sqlDatabases",
    "container": f"{ACCOUNT}/sqlDatabases/containers",
    "throughput": f"{ACCOUNT}/sqlDatabases/containers/throughputSettings",
}


class Issuer:
    """Issues and checks tokens as Entra ID would; times are seconds.

    Entra ID's tokens carry no roles: the service looks them up. Ours carry them, so a test can have an identity for
    each.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(self, scope: str, roles: tuple[str, ...], now: float) -> str:
        """Return a token: for ARM if *scope* is ARM's, else for the account."""
        audience = ARM_AUDIENCE if scope.startswith(ARM_AUDIENCE) else DATA_AUDIENCE
        claims = {"aud": audience, "exp": int(now + TOKEN_LIFE_S), "roles": roles}
        payload = base64.urlsafe_b64encode(orjson.dumps(claims))
        return f"{payload.decode()}.{self._signature(payload)}"

    def check(self, token: str, now: float, audience: str = DATA_AUDIENCE) -> tuple[str, ...]:
        """Return a token's roles; 401 for one that is another issuer's, expired, or for another audience."""
        payload, _, signature = token.partition(".")
        if not hmac.compare_digest(self._signature(payload.encode()), signature):
            raise HttpError(401, "the token is not of this emulator's test issuer", TOKEN_SIGNATURE_INVALID)
        claims = orjson.loads(base64.urlsafe_b64decode(payload))
        if claims["exp"] <= now:
            raise HttpError(401, "Provided AAD token has been expired. Please refresh the AAD token.", TOKEN_EXPIRED)
        if claims["aud"] != audience:
            audiences = f"[{claims['aud']}]. This accepts tokens intended for [{audience}]"
            raise HttpError(401, f"Provided AAD token is intended for {audiences}.", TOKEN_AUDIENCE_INVALID)
        return tuple(claims["roles"])

    def _signature(self, payload: bytes) -> str:
        return hmac.new(self._secret, payload, "sha256").hexdigest()

    def page(self, request: Request, now: float) -> HttpResponse:
        """Answer as the endpoint of managed identities does; `roles` are all unless some are named."""
        parameters = parse_qs(request.query)
        roles = tuple(parameters["roles"][0].split(",")) if "roles" in parameters else ROLES
        token = self.issue(parameters["resource"][0], roles, now)
        answer = {"token_type": "Bearer", "resource": parameters["resource"][0], "expires_on": int(now + TOKEN_LIFE_S)}
        return HttpResponse(200, orjson.dumps(answer | {"expires_in": TOKEN_LIFE_S, "access_token": token}))


class TokenAuthenticator(Authenticator):
    """Takes the account's key, and tokens of the issuer for what their roles allow."""

    def __init__(self, key: str, issuer: Issuer) -> None:
        super().__init__(key)
        self._issuer = issuer

    def check(self, request: Request, resource_type: str, link: str, operation: str, now: float) -> None:
        """Raise 403 for what no token may do at the account's endpoint, and for what its roles do not allow.

        No role covers the management of databases, containers and throughput.
        """
        authorization = unquote(request.header(b"authorization"))
        if not authorization.startswith("type=aad&"):
            super().check(request, resource_type, link, operation, now)
            return
        roles = self._issuer.check(authorization.partition("&sig=")[2], now)
        allowed = {CONTRIBUTOR} if operation.startswith(WRITES) else {CONTRIBUTOR, READER}
        if "offer" in operation or (operation not in ACTIONS and operation.startswith(WRITES)):
            line = f"{request.method} {request.path.rstrip('/')}"
            substatus = TOKEN_NOT_AUTHORIZED
            reason = f"The given request [{line}] cannot be authorized by AAD token in data plane"
        elif allowed.isdisjoint(roles):
            action = ACTIONS.get(operation, f"{ACCOUNT}/readMetadata")
            substatus = DATA_PERMISSION_MISSING if operation in ACTIONS else METADATA_PERMISSION_MISSING
            principal = "principal [test] does not have required RBAC permissions"
            reason = f"Request is blocked because {principal} to perform action [{action}]"
        else:
            return
        link = "https://aka.ms/cosmos-native-rbac"
        raise HttpError(403, f"Request blocked by Auth hotplate-emulation : {reason}. Learn more: {link}.", substatus)


class ArmError(HttpError):
    """An error of ARM itself; those of the resource provider have no separate code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ArmResource:
    """The parts of a path as written; empty if it has none."""

    id: str
    subscription: str
    group: str
    account: str
    database: str
    container: str
    throughput: str
    feed: str
    """Not empty for all containers of the database."""

    @property
    def kind(self) -> str:
        return "throughput" if self.throughput else "container" if self.container or self.feed else "database"

    @property
    def names(self) -> list[str]:
        return [name for name in (self.database, self.container) if name]


@dataclass(slots=True)
class ResourceManager:
    """Answers requests below PREFIX."""

    service: Service
    issuer: Issuer
    operations: dict[str, tuple[float, HttpError | None]] = field(default_factory=dict)
    """The changes that were accepted: when each is reported as done, and its error if it failed."""

    def answer(self, request: Request) -> HttpResponse:
        path = unquote(request.path)
        match = RESOURCE.fullmatch(path)
        change = STATUS.fullmatch(path)
        resource = ArmResource(**match.groupdict("")) if match else None
        operation = f"manage {resource.kind if resource else 'operation'}"
        try:
            self._fail(request, operation)
            self._authorize(request, resource)
            response = self._poll(change[1]) if change else self._run(request, resource)
        except HttpError as error:
            body = _error_body(error)
            headers = dict[str, str]()
            if wait_ms := error.headers.get("x-ms-retry-after-ms"):
                headers["retry-after"] = str(ceil(float(wait_ms) / 1000))
            wrapped = {"error": body} if isinstance(error, ArmError) else body
            response = HttpResponse(error.status, orjson.dumps(wrapped), headers)
        self.service.requests[operation, response.status] += 1
        return response

    def _fail(self, request: Request, operation: str) -> None:
        """Raise the error of a fault for an operation, if there is one; those that name none are for the account."""
        for fault in self.service.faults.affecting(request, operation, self.service.account.clock()):
            if fault.operation == operation and fault.kind in ERRORS:
                raise fault.error()

    def _authorize(self, request: Request, resource: ArmResource | None) -> None:
        """Raise 401 without a valid token, 403 without the role, and 404 for another account than there is."""
        try:
            token = request.header(b"authorization").partition(" ")[2]
            roles = self.issuer.check(token, self.service.account.clock(), ARM_AUDIENCE)
        except HttpError as error:
            raise ArmError(401, "InvalidAuthenticationToken", error.message) from None
        if resource is None:
            return
        if OPERATOR not in roles:
            action = f"{TYPES[resource.kind]}/{METHODS[request.method]}"
            sentence = f"does not have authorization to perform action '{action}' over scope '{resource.id}'"
            raise ArmError(403, "AuthorizationFailed", f"The client 'test' {sentence} or the scope is invalid.")
        host = request.header(b"host").partition(":")[0].partition(".")[0]
        for values, there, subject in (
            (resource.subscription, PLACE["subscription"], "Subscription"),
            (resource.group, PLACE["resource_group"], "ResourceGroup"),
            (resource.account, host, "Resource"),
        ):
            if values.lower() != there:
                raise ArmError(404, f"{subject}NotFound", f"The {subject} '{values}' could not be found.")

    def _run(self, request: Request, resource: ArmResource | None) -> HttpResponse:
        if resource is None:
            raise ArmError(404, "InvalidResourceType", "this emulation does not have that resource at ARM")
        if request.method == "GET":
            return HttpResponse(200, orjson.dumps(self._read(resource)))
        error: HttpError | None = None
        try:
            self._fail(request, "finish change")
            if request.method == "PUT":
                self._put(resource, request)
            else:
                resources.OPERATIONS[f"delete {resource.kind}"](self.service.account, request, *resource.names)
        except HttpError as raised:
            if request.method == "DELETE" and raised.status == 404:
                return HttpResponse(204)
            error = raised
        name = str(uuid.uuid4())
        self.operations[name] = self.service.account.clock() + OPERATION_S, error
        host = request.header(b"host")
        version = parse_qs(request.query)["api-version"][0]
        provider = f"{PREFIX}{PLACE['subscription']}/providers/Microsoft.DocumentDB"
        status = f"{provider}/locations/emulated/operationsStatus/{name}?api-version={version}"
        url = f"{request.scheme}://{host}{status}"
        return HttpResponse(202, orjson.dumps({"status": "Enqueued"}), {"azure-asyncoperation": url})

    def _poll(self, name: str) -> HttpResponse:
        done_at, error = self.operations[name]
        is_done = self.service.account.clock() >= done_at
        status = {"status": "Dequeued" if not is_done else "Failed" if error else "Succeeded"}
        failure = {"error": _error_body(error)} if is_done and error else {}
        return HttpResponse(200, orjson.dumps(status | failure))

    def _read(self, resource: ArmResource) -> dict[str, Any]:
        account = self.service.account
        if resource.feed:
            containers = account.database(resource.database).containers
            offers = [
                _described(f"{resource.id}/{name}", "container", containers[name].to_json()) for name in containers
            ]
            return {"value": offers}
        if resource.kind == "throughput":
            offer = account.container(*resource.names).offer
            ru = offer.throughput.ru
            settings = dict[str, Any]()
            if offer.throughput.autoscale:
                settings = {"throughput": ru // 10, "autoscaleSettings": {"maxThroughput": ru}}
            settings = {"minimumThroughput": str(offer.minimum_ru), "throughput": ru} | settings
            return _described(resource.id, resource.kind, settings)
        response = resources.OPERATIONS[f"read {resource.kind}"](account, None, *resource.names)
        return _described(resource.id, resource.kind, response.to_json())

    def _put(self, resource: ArmResource, request: Request) -> None:
        account = self.service.account
        properties = request.object()["properties"]
        requested = properties["resource"]
        options = properties.get("options") or {}
        if resource.kind == "throughput":
            throughput = resources.throughput_of(requested.get("throughput"), requested.get("autoscaleSettings"))
            resources.replace_throughput(account.container(*resource.names).offer, throughput)
        elif resource.kind == "database":
            if resource.database not in account.databases:
                resources.create_database(account, requested)
        else:
            database = account.database(resource.database, is_owner=True)
            if resource.container in database.containers:
                raise ArmError(400, "NotSupported", "ARM would change the container, which this emulation does not")
            manual, autoscale = options.get("throughput"), options.get("autoscaleSettings")
            resources.create_container(account, database, requested, manual, autoscale)


def _described(arm_id: str, kind: str, offer: dict[str, Any]) -> dict[str, Any]:
    return {"id": arm_id, "type": TYPES[kind], "name": arm_id.rpartition("/")[2], "properties": {"resource": offer}}


def _error_body(error: HttpError) -> dict[str, object]:
    code = error.code if isinstance(error, ArmError) else CODES.get(error.status, "Error")
    return {"code": code, "message": error.message}


@dataclass(frozen=True, slots=True)
class AzureAccount(Emulator):
    """An emulator that takes tokens, and answers for Azure Resource Manager and the endpoint of identities."""

    issuer: Issuer = field(default_factory=Issuer)

    def url(self, database: str, **options: object) -> str:
        """Return the URL of a database as identities reach it."""
        host = self.endpoint.removeprefix("https://").rstrip("/")
        return f"cosmos://{host}/{database}?{urllib.parse.urlencode({'ca': self.certificate, **options})}"


@contextmanager
def azure_account(certificate: Path) -> Iterator[AzureAccount]:
    """Run one over TLS; its tokens are also at /__emulation/token."""
    issuer = Issuer()

    def extend(service: Service, inner: HttpHandler) -> HttpHandler:
        service.authenticator = TokenAuthenticator(EMULATOR_KEY, issuer)
        manager = ResourceManager(service, issuer)

        def answer(request: Request) -> HttpResponse:
            if request.path.startswith(PREFIX):
                return manager.answer(request)
            if request.path == "/__emulation/token":
                return issuer.page(request, service.account.clock())
            return inner(request)

        return answer

    with emulator_thread(EmulatorSettings(port=0, tls=True, certificate=certificate), extend) as (emulator, _):
        yield AzureAccount(emulator.endpoint, emulator.pid, emulator.key, emulator.certificate, issuer)


class Identity(AsyncTokenCredential):
    """A credential as azure.identity.aio has them, with some roles; or one that fails."""

    def __init__(self, server: AzureAccount, *roles: str, clock: Callable[[], float] = time.time) -> None:
        self._server = server
        self._roles = roles or ROLES
        self._clock = clock
        self.scopes = list[str]()
        self.error = ""
        self.closed = False

    async def get_token(self, *scopes: str, **_options: object) -> AccessToken:
        self.scopes += scopes
        if self.error:
            raise ClientAuthenticationError(self.error)
        token = self._server.issuer.issue(scopes[0], self._roles, time.time())
        return AccessToken(token, int(self._clock()) + TOKEN_LIFE_S)

    async def close(self) -> None:
        self.closed = True

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()
