"""Tokens as Entra ID would give, from an issuer that only this emulator believes."""

import base64
import hmac
import secrets
from datetime import UTC, datetime
from typing import Any

import orjson

from bench.cosmos_emulator.errors import TOKEN_AUDIENCE, TOKEN_EXPIRED, TOKEN_SIGNATURE, Refused

LIFE_S = 3600
ISSUER = "urn:hotplate:cosmos-emulator"
HEADER = b'{"alg":"HS256","typ":"JWT"}'
DATA = "https://cosmos.azure.com"
MANAGEMENT = "https://management.azure.com"
"""What a token is for: the account's own endpoint, or Azure Resource Manager."""

READER, CONTRIBUTOR, OPERATOR = "reader", "contributor", "operator"
ROLES = (READER, CONTRIBUTOR, OPERATOR)
"""Cosmos DB Built-in Data Reader and Data Contributor, at the account's endpoint; Cosmos DB Operator, at ARM."""


class Issuer:
    """Gives and checks tokens; its secret is made at its start and lives in memory only."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(
        self, now: float, life_s: float = LIFE_S, *, scope: str = DATA, roles: tuple[str, ...] = ROLES
    ) -> dict[str, Any]:
        """Return a token in the form in which Entra ID and managed identities answer; times are seconds.

        A *scope* of ARM makes a token for ARM, any other one for the account. Entra ID's tokens name no roles: these
        are looked up where the token is shown. Ours carry them, so that a test can have an identity for each.
        """
        expires = int(now + life_s)
        audience = MANAGEMENT if scope.startswith(MANAGEMENT) else DATA
        claims = {"iss": ISSUER, "aud": audience, "iat": int(now), "exp": expires, "roles": roles}
        signed = _text(HEADER) + b"." + _text(orjson.dumps(claims))
        token = signed + b"." + _text(self._sign(signed))
        return {
            "token_type": "Bearer",
            "resource": audience,
            "expires_in": int(life_s),
            "expires_on": expires,
            "access_token": token.decode(),
        }

    def check(self, token: str, now: float, audience: str = DATA) -> tuple[str, ...]:
        """Return a token's roles; refuse with 401 what this issuer did not give, gave long ago or gave for another."""
        signed, _, signature = token.encode().rpartition(b".")
        if not hmac.compare_digest(_text(self._sign(signed)), signature):
            raise Refused(401, "the token is not of this emulator's test issuer", TOKEN_SIGNATURE)
        claims = orjson.loads(base64.urlsafe_b64decode(signed.partition(b".")[2] + b"=="))
        if claims["exp"] <= now:
            said = f"expired since [{_date(claims['exp'])}]. Current server time is [{_date(now)}]"
            raise Refused(401, f"Provided AAD token has been {said}. Please refresh the AAD token.", TOKEN_EXPIRED)
        if claims["aud"] != audience:
            said = f"[{claims['aud']}]. This accepts tokens intended for [{audience}]"
            raise Refused(401, f"Provided AAD token is intended for {said}.", TOKEN_AUDIENCE)
        return tuple(claims["roles"])

    def _sign(self, signed: bytes) -> bytes:
        return hmac.digest(self._secret, signed, "sha256")


def _text(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%m/%d/%Y %H:%M:%S (UTC)")
