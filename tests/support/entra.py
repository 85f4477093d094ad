"""Entra ID for tests: an issuer of tokens, an emulator that takes them, and the identities that get them."""

import asyncio
import base64
import hmac
import secrets
import ssl
import urllib.parse
import urllib.request
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote

import orjson
from azure.core.credentials import AccessToken

from hotplate.bench.cosmos_emulator.http import HttpError, HttpResponse, Request
from hotplate.bench.cosmos_emulator.service import Authenticator
from tests.support.cosmos_server import Emulator

# Where ARM keeps the emulated account.
PLACE = {"subscription": "00000000-0000-0000-0000-000000000000", "resource_group": "emulation"}
TOKEN_LIFE_S = 3600
ISSUER = "urn:hotplate:cosmos-emulator"
JWT_HEADER = b'{"alg":"HS256","typ":"JWT"}'

# The audience of a token: the account's own endpoint, or Azure Resource Manager.
DATA_AUDIENCE = "https://cosmos.azure.com"
ARM_AUDIENCE = "https://management.azure.com"

# Cosmos DB Built-in Data Reader and Data Contributor, at the account's endpoint; Cosmos DB Operator, at ARM.
READER = "reader"
CONTRIBUTOR = "contributor"
OPERATOR = "operator"
ROLES = (READER, CONTRIBUTOR, OPERATOR)

ACCOUNT = "Microsoft.DocumentDB/databaseAccounts"
ITEMS = f"{ACCOUNT}/sqlDatabases/containers/items"

# The action that each operation on items needs; all other operations that only read need `readMetadata`.
# https://learn.microsoft.com/azure/cosmos-db/reference-data-plane-security
ACTIONS = {
    "read item": f"{ITEMS}/read",
    "list items": f"{ACCOUNT}/sqlDatabases/containers/readChangeFeed",
    "query items": f"{ACCOUNT}/sqlDatabases/containers/executeQuery",
    **{f"{verb} item": f"{ITEMS}/{verb}" for verb in ("create", "upsert", "replace", "delete")},
}
WRITES = ("create", "upsert", "replace", "delete")

# Substatus codes of Entra ID and of roles.
TOKEN_SIGNATURE_INVALID = 5004
TOKEN_EXPIRED = 5006
TOKEN_AUDIENCE_INVALID = 5008
TOKEN_NOT_AUTHORIZED = 5300
METADATA_PERMISSION_MISSING = 5301
DATA_PERMISSION_MISSING = 5302


class Issuer:
    """Issues and checks tokens as Entra ID would; its secret is made at the start and kept in memory only."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(self, now: float, *, scope: str = DATA_AUDIENCE, roles: tuple[str, ...] = ROLES) -> dict[str, Any]:
        """Return a token in the form in which Entra ID and managed identities respond; times are seconds.

        A *scope* of ARM makes a token for ARM, any other one for the account. Entra ID's tokens carry no roles: the
        service looks them up. Ours carry them, so a test can have an identity for each.
        """
        expires = int(now + TOKEN_LIFE_S)
        audience = ARM_AUDIENCE if scope.startswith(ARM_AUDIENCE) else DATA_AUDIENCE
        claims = {"iss": ISSUER, "aud": audience, "iat": int(now), "exp": expires, "roles": roles}
        payload = _base64url(JWT_HEADER) + b"." + _base64url(orjson.dumps(claims))
        return {
            "token_type": "Bearer",
            "resource": audience,
            "expires_in": TOKEN_LIFE_S,
            "expires_on": expires,
            "access_token": (payload + b"." + self._signature(payload)).decode(),
        }

    def check(self, token: str, now: float, audience: str = DATA_AUDIENCE) -> tuple[str, ...]:
        """Return a token's roles; 401 for one that is another issuer's, expired, or for another audience."""
        payload, _, signature = token.encode().rpartition(b".")
        if not hmac.compare_digest(self._signature(payload), signature):
            raise HttpError(401, "the token is not of this emulator's test issuer", TOKEN_SIGNATURE_INVALID)
        claims = orjson.loads(base64.urlsafe_b64decode(payload.partition(b".")[2] + b"=="))
        if claims["exp"] <= now:
            raise HttpError(401, "Provided AAD token has been expired. Please refresh the AAD token.", TOKEN_EXPIRED)
        if claims["aud"] != audience:
            audiences = f"[{claims['aud']}]. This accepts tokens intended for [{audience}]"
            raise HttpError(401, f"Provided AAD token is intended for {audiences}.", TOKEN_AUDIENCE_INVALID)
        return tuple(claims["roles"])

    def _signature(self, payload: bytes) -> bytes:
        return _base64url(hmac.digest(self._secret, payload, "sha256"))


class TokenAuthenticator(Authenticator):
    """Takes the account's key, and tokens of the test issuer for what their roles allow."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.issuer = Issuer()

    def check(self, request: Request, resource_type: str, link: str, operation: str, now: float) -> None:
        authorization = unquote(request.header(b"authorization"))
        if not authorization.startswith("type=aad&"):
            super().check(request, resource_type, link, operation, now)
            return
        roles = self.issuer.check(authorization.partition("&sig=")[2], now)
        _authorize(roles, operation, request)


def _authorize(roles: tuple[str, ...], operation: str, request: Request) -> None:
    """Raise 403 for what no token may do at the account's endpoint, and for what these *roles* do not allow.

    https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac: no role covers the management of databases,
    containers and throughput.
    """
    allowed = (CONTRIBUTOR,) if operation.startswith(WRITES) else (CONTRIBUTOR, READER)
    if "offer" in operation or (operation not in ACTIONS and operation.startswith(WRITES)):
        line, substatus = f"{request.method} {request.path.rstrip('/')}", TOKEN_NOT_AUTHORIZED
        reason = f"The given request [{line}] cannot be authorized by AAD token in data plane"
    elif set(roles).isdisjoint(allowed):
        action = ACTIONS.get(operation, f"{ACCOUNT}/readMetadata")
        substatus = DATA_PERMISSION_MISSING if operation in ACTIONS else METADATA_PERMISSION_MISSING
        principal = "principal [test] does not have required RBAC permissions"
        reason = f"Request is blocked because {principal} to perform action [{action}]"
    else:
        return
    link = "https://aka.ms/cosmos-native-rbac"
    raise HttpError(403, f"Request blocked by Auth hotplate-emulation : {reason}. Learn more: {link}.", substatus)


def token_page(issuer: Issuer, request: Request, now: float) -> HttpResponse:
    """Answer a request for a token; each parameter of its query is optional.

    Credentials send `scope`; callers that take this page for a managed identity's endpoint send `resource`.
    """
    parameters = parse_qs(request.query)
    roles = tuple(parameters["roles"][0].split(",")) if "roles" in parameters else ROLES
    scope = (parameters.get("scope") or parameters.get("resource") or [DATA_AUDIENCE])[0]
    return HttpResponse(200, orjson.dumps(issuer.issue(now, scope=scope, roles=roles)))


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def token_of(server: Emulator, scope: str, roles: str = "") -> AccessToken:
    """Request a token of the issuer as a credential requests one of Entra ID."""
    assert server.certificate is not None
    query = {"scope": scope} | ({"roles": roles} if roles else {})
    url = f"{server.endpoint}__emulation/token?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(
        url, timeout=60, context=ssl.create_default_context(cafile=server.certificate)
    ) as answer:
        answer_json = orjson.loads(answer.read())
    return AccessToken(answer_json["access_token"], answer_json["expires_on"])


class Identity:
    """A credential as azure.identity.aio has them; all roles unless some are named, separated by commas."""

    def __init__(self, server: Emulator, roles: str = "") -> None:
        self._server = server
        self._roles = roles
        self.scopes = list[str]()

    async def get_token(self, *scopes: str, **_options: object) -> AccessToken:
        self.scopes.append(scopes[0])
        return await asyncio.to_thread(token_of, self._server, scopes[0], self._roles)

    async def close(self) -> None:
        """Has nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.close()


def url_of(server: Emulator, database: str, **options: object) -> str:
    """Return the URL of a database as Entra ID's identities reach it."""
    query = {"ca": server.certificate, **options}
    host = server.endpoint.removeprefix("https://").rstrip("/")
    return f"cosmos://{host}/{database}?{urllib.parse.urlencode(query)}"
