"""Authentication by the account's key or by a token of the test issuer, and what the roles of a token allow.

https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources describes the signatures.
"""

import base64
import binascii
import hmac
import secrets
from calendar import timegm
from datetime import UTC, datetime
from email.utils import parsedate
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import orjson

from hotplate.bench.cosmos_emulator.http import EmulatorMisused, HttpError, Request, Substatus

# A request whose date is further off than this is refused, as the service does.
MAX_CLOCK_SKEW_S = 15 * 60

# Not a secret: the key of Microsoft's own emulator, which its documentation prints and tools expect.
# https://learn.microsoft.com/azure/cosmos-db/emulator#authentication
WELL_KNOWN_KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="

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
    "plan query": f"{ACCOUNT}/sqlDatabases/containers/executeQuery",
    **{f"{verb} item": f"{ITEMS}/{verb}" for verb in ("create", "upsert", "replace", "delete")},
    "patch item": f"{ITEMS}/replace",
    "batch items": f"{ITEMS}/*",
}
WRITES = ("create", "upsert", "replace", "patch", "delete", "batch")


class Issuer:
    """Issues and checks tokens as Entra ID would; its secret is made at the start and kept in memory only."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(
        self, now: float, life_s: float = TOKEN_LIFE_S, *, scope: str = DATA_AUDIENCE, roles: tuple[str, ...] = ROLES
    ) -> dict[str, Any]:
        """Return a token in the form in which Entra ID and managed identities respond; times are seconds.

        A *scope* of ARM makes a token for ARM, any other one for the account. Entra ID's tokens carry no roles: the
        service looks them up. Ours carry them, so a test can have an identity for each.
        """
        expires = int(now + life_s)
        audience = ARM_AUDIENCE if scope.startswith(ARM_AUDIENCE) else DATA_AUDIENCE
        claims = {"iss": ISSUER, "aud": audience, "iat": int(now), "exp": expires, "roles": roles}
        payload = _base64url(JWT_HEADER) + b"." + _base64url(orjson.dumps(claims))
        return {
            "token_type": "Bearer",
            "resource": audience,
            "expires_in": int(life_s),
            "expires_on": expires,
            "access_token": (payload + b"." + self._signature(payload)).decode(),
        }

    def check(self, token: str, now: float, audience: str = DATA_AUDIENCE) -> tuple[str, ...]:
        """Return a token's roles; 401 for one that is another issuer's, expired, or for another audience."""
        payload, _, signature = token.encode().rpartition(b".")
        if not hmac.compare_digest(self._signature(payload), signature):
            raise HttpError(401, "the token is not of this emulator's test issuer", Substatus.TOKEN_SIGNATURE_INVALID)
        claims = orjson.loads(base64.urlsafe_b64decode(payload.partition(b".")[2] + b"=="))
        if claims["exp"] <= now:
            times = f"expired since [{_utc(claims['exp'])}]. Current server time is [{_utc(now)}]"
            raise HttpError(
                401, f"Provided AAD token has been {times}. Please refresh the AAD token.", Substatus.TOKEN_EXPIRED
            )
        if claims["aud"] != audience:
            audiences = f"[{claims['aud']}]. This accepts tokens intended for [{audience}]"
            raise HttpError(401, f"Provided AAD token is intended for {audiences}.", Substatus.TOKEN_AUDIENCE_INVALID)
        return tuple(claims["roles"])

    def _signature(self, payload: bytes) -> bytes:
        return _base64url(hmac.digest(self._secret, payload, "sha256"))


class Authenticator:
    """Checks signatures and tokens; lives as long as the emulator."""

    def __init__(self, key: str, issuer: Issuer | None) -> None:
        try:
            secret = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise EmulatorMisused("the account's key is not base64") from None
        if not secret:
            raise EmulatorMisused("the account's key is empty")
        self._signer = hmac.new(secret, digestmod="sha256")
        self.issuer = issuer

    def check(self, request: Request, resource_type: str, link: str, now: float) -> tuple[str, ...] | None:
        """Return the roles of a token, None for the key, which may do everything.

        Raises 401 for a request that is not signed, is signed wrongly, or has a date too far from *now*.
        """
        authorization = unquote(request.header(b"authorization"))
        if authorization.startswith("type=aad&"):
            return self.roles(authorization.partition("&sig=")[2], now, DATA_AUDIENCE)
        date = request.header(b"x-ms-date") or request.header(b"date")
        seconds = _seconds_of(date)
        if seconds is None or abs(seconds - now) > MAX_CLOCK_SKEW_S:
            minutes = MAX_CLOCK_SKEW_S // 60
            raise HttpError(401, f"x-ms-date must be an RFC 1123 date within {minutes} minutes of the server's clock")
        scheme, _, signature = authorization.partition("&sig=")
        if scheme != "type=master&ver=1.0":
            raise HttpError(
                401, "the request is not signed: Authorization must be type=master or type=aad, ver=1.0 and sig"
            )
        signer = self._signer.copy()
        signer.update(f"{request.method.lower()}\n{resource_type}\n{link}\n{date.lower()}\n\n".encode())
        if not hmac.compare_digest(base64.b64encode(signer.digest()), signature.encode()):
            raise HttpError(
                401,
                "The input authorization token can't serve the request. The wrong key is being used or the expected "
                f"payload is not built as per the protocol. The emulator signed: verb {request.method.lower()}, "
                f"type {resource_type}, link {link}, date {date.lower()[:40]}",
            )
        return None

    def roles(self, token: str, now: float, audience: str) -> tuple[str, ...]:
        """Return the roles of a token for *audience*; 401 for any other."""
        if self.issuer is None:
            raise HttpError(401, "Entra tokens are off: start with --entra-issuer, and take them from the emulator")
        return self.issuer.check(token, now, audience)


def authorize(roles: tuple[str, ...], operation: str, request: Request) -> None:
    """Raise 403 for what no token may do at the account's endpoint, and for what these *roles* do not allow.

    https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac: no role covers the management of databases,
    containers and throughput.
    """
    allowed = (CONTRIBUTOR,) if operation.startswith(WRITES) else (CONTRIBUTOR, READER)
    if "offer" in operation or (operation not in ACTIONS and operation.startswith(WRITES)):
        line, substatus = f"{request.method} {request.path.rstrip('/')}", Substatus.TOKEN_NOT_AUTHORIZED
        reason = f"The given request [{line}] cannot be authorized by AAD token in data plane"
    elif set(roles).isdisjoint(allowed):
        action = ACTIONS.get(operation, f"{ACCOUNT}/readMetadata")
        substatus = Substatus.DATA_PERMISSION_MISSING if operation in ACTIONS else Substatus.METADATA_PERMISSION_MISSING
        principal = "principal [test] does not have required RBAC permissions"
        reason = f"Request is blocked because {principal} to perform action [{action}]"
    else:
        return
    link = "https://aka.ms/cosmos-native-rbac"
    raise HttpError(403, f"Request blocked by Auth hotplate-emulation : {reason}. Learn more: {link}.", substatus)


@lru_cache(256)
def _seconds_of(date: str) -> float | None:
    try:
        parsed = parsedate(date)
        return None if parsed is None else timegm(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%m/%d/%Y %H:%M:%S (UTC)")
