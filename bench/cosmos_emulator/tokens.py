"""Tokens as Entra ID would give, from an issuer that only this emulator believes."""

import base64
import hmac
import secrets
from typing import Any

import orjson

from bench.cosmos_emulator.errors import Refused

LIFE_S = 3600
ISSUER = "urn:hotplate:cosmos-emulator"
HEADER = b'{"alg":"HS256","typ":"JWT"}'


class Issuer:
    """Gives and checks tokens; its secret is made at its start and lives in memory only."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def issue(self, now: float, life_s: float = LIFE_S) -> dict[str, Any]:
        """Return a token in the form of an OAuth 2.0 token answer; times are seconds of the emulator's clock."""
        expires = int(now + life_s)
        claims = {"iss": ISSUER, "aud": "https://cosmos.azure.com", "iat": int(now), "exp": expires}
        signed = _text(HEADER) + b"." + _text(orjson.dumps(claims))
        token = signed + b"." + _text(self._sign(signed))
        return {
            "token_type": "Bearer",
            "expires_in": int(life_s),
            "expires_on": expires,
            "access_token": token.decode(),
        }

    def check(self, token: str, now: float) -> None:
        """Refuse with 401 what this issuer did not give, or gave too long ago."""
        signed, _, signature = token.encode().rpartition(b".")
        if not hmac.compare_digest(_text(self._sign(signed)), signature):
            raise Refused(401, "the token is not of this emulator's test issuer")
        claims = orjson.loads(base64.urlsafe_b64decode(signed.partition(b".")[2] + b"=="))
        if claims["exp"] <= now:
            raise Refused(401, "the token has expired")

    def _sign(self, signed: bytes) -> bytes:
        return hmac.digest(self._secret, signed, "sha256")


def _text(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
