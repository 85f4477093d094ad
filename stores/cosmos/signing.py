"""Who asks: a request signed with the account's key. `cosmos_token` does the same by Entra ID.

https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources tells what is signed.
"""

import hashlib
from base64 import b64decode
from binascii import Error as NotBase64
from binascii import b2a_base64
from typing import Protocol

from stores.cosmos.url import KEY
from stores.errors import StoreMisused

BLOCK = 64
"""Bytes to which HMAC fills the key of SHA-256 up."""


class Signer(Protocol):
    """Signs requests; an instance lives as long as its driver."""

    advice: str
    """What to do where the service does not let us in, as the end of a sentence."""

    def lacks(self) -> bool:
        """Tell whether `obtain` must be awaited before anything can be signed."""
        ...

    async def obtain(self) -> None:
        """Get what is signed with; raises CosmosUnavailable."""
        ...

    async def renew(self) -> bool:
        """Get another where the service refused this one; False where there is no other, or it is too early to ask."""
        ...

    def authorization(self, text: bytes) -> bytes:
        """Return the value of the header for the *text* to be signed: verb, type, link and date in lower case."""
        ...

    async def close(self) -> None:
        """Give back what signing took."""
        ...


class KeySigner:
    """Signs with the account's key, which it tells nobody; half a microsecond each.

    HMAC is written out (RFC 2104): copies of two hashes that have swallowed the key cost less than hmac's own copies.
    """

    __slots__ = ("_inner", "_outer", "advice")

    def __init__(self, key: str, shown: str) -> None:
        """Take the key as the portal shows it; StoreMisused where it is not base64. *shown* is for that sentence."""
        try:
            secret = b64decode(key, validate=True)
        except (NotBase64, ValueError):
            secret = b""
        if not secret:
            raise StoreMisused(f"the key of {shown} is not base64; give {KEY} as the account's page shows it") from None
        if len(secret) > BLOCK:
            secret = hashlib.sha256(secret).digest()
        filled = secret.ljust(BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in filled))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in filled))
        self.advice = f"{KEY}, or the file that {KEY}_FILE names, does not hold a key of this account"

    def lacks(self) -> bool:
        """See `Signer`."""
        return False

    async def obtain(self) -> None:
        """See `Signer`."""

    async def renew(self) -> bool:
        """See `Signer`."""
        return False

    def authorization(self, text: bytes) -> bytes:
        """See `Signer`."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        signature = b2a_base64(outer.digest(), newline=False)
        escaped = signature.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D")
        return b"type%3Dmaster%26ver%3D1.0%26sig%3D" + escaped

    async def close(self) -> None:
        """See `Signer`."""
