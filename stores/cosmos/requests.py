"""HTTP requests signed by the account's key or a token of Entra ID.

Protocol: https://learn.microsoft.com/rest/api/cosmos-db. Signature:
https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources. Headers without effect are omitted.
"""

import hmac
import logging
import random
import re
from base64 import b64decode
from binascii import Error as NotBase64
from binascii import b2a_base64
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from hotplate.stores.cosmos.errors import CosmosUnavailable, first_line, store_closed
from hotplate.stores.cosmos.url import KEY, Address
from hotplate.stores.errors import StoreMisused
from hotplate.stores.shared_call import SharedCall

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.identity.aio import DefaultAzureCredential

log = logging.getLogger(__name__)

VERSION = b"2020-07-15"
AGENT = b"hotplate"
# Names that need no escaping in a path, a header or JSON.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,1022}")

# Share of a token's life left at its renewal.
RENEW_AT_LIFE_LEFT = 0.2
# Pause after a failed request for a token.
TOKEN_PAUSE_S = 30.0
ALL_ACCOUNTS_SCOPE = "https://cosmos.azure.com/.default"
# A tenant lacks a scope for this account; like the SDKs, fall back to the scope above.
UNKNOWN_RESOURCE_CODE = "AADSTS500011"


class KeySigner:
    """Signs requests with the account's key."""

    def __init__(self, key: str, shown: str) -> None:
        try:
            secret = b64decode(key, validate=True)
        except (NotBase64, ValueError):
            secret = b""
        if not secret:
            raise StoreMisused(f"the key of {shown} is not base64; give {KEY} as the account's page shows it") from None
        self._hmac = hmac.new(secret, digestmod="sha256")

    def authorization(self, text: bytes) -> bytes:
        signer = self._hmac.copy()  # takes 1.4 µs, `hmac.digest` 2
        signer.update(text)
        signature = b2a_base64(signer.digest(), newline=False)
        escaped = signature.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D")
        return b"type%3Dmaster%26ver%3D1.0%26sig%3D" + escaped


class Credential(Protocol):
    """A credential of `azure.identity.aio`."""

    async def get_token(self, *scopes: str) -> "AccessToken":
        """Return a token; may raise any exception."""

    async def close(self) -> None:
        """Close connections."""


class TokenSigner:
    """Authorizes requests by a token of Entra ID, renewed in the background; closes the credential."""

    def __init__(self, address: Address, credential: Credential, clock: Callable[[], float]) -> None:
        self._shown = address.shown
        self._scope = f"https://{urlsplit(address.endpoint).hostname}/.default"
        self._credential = credential
        self._clock = clock
        self._value = b""
        self._renew_at = self._ends_at = self._requested_at = float("-inf")
        self._renewal = SharedCall(self._renew, store_closed)
        self._error = ""

    def needs_token(self) -> bool:
        """Return whether `acquire_token` must be awaited; starts a renewal if due."""
        now = self._clock()
        if now >= self._renew_at:
            self._renewal.start()
        return now >= self._ends_at

    async def acquire_token(self) -> None:
        """Wait for a token; raises CosmosUnavailable, immediately for TOKEN_PAUSE_S after a failure."""
        if self.needs_token():
            if self._renewal.is_running:
                await self._renewal.result()
            if self._clock() >= self._ends_at:
                raise CosmosUnavailable(self._error, "unauthorized")

    def refused(self) -> None:
        """Drop a refused token, unless it is new."""
        if self._clock() >= self._requested_at + TOKEN_PAUSE_S:
            self._renew_at = self._ends_at = float("-inf")

    def authorization(self, text: bytes) -> bytes:
        del text  # a token signs any request
        return self._value

    async def close(self) -> None:
        await self._renewal.close()
        await self._credential.close()

    async def _renew(self) -> None:
        """Get a token; a failure is logged once, and raised when the last token has expired."""
        self._requested_at = now = self._clock()
        self._renew_at = now + TOKEN_PAUSE_S
        try:
            token = await self._token()
            value = f"type=aad&ver=1.0&sig={token.token}".encode("ascii")
            life_s = token.expires_on - self._clock()
            if not token.token or any(byte <= 0x20 for byte in value):
                raise ValueError("the token is malformed")  # noqa: TRY301 -- reported below
            if life_s <= 0:
                raise ValueError("the token has ended by this machine's clock; set it right")  # noqa: TRY301 -- as above
        except Exception as error:  # noqa: BLE001 -- credentials raise anything
            reason = first_line(str(error))
            if not self._error:
                log.warning("%s: no token from Entra ID: %s", self._shown, reason)
            self._error = f"{self._shown}: Entra ID gives no token; sign in, or give {KEY} ({reason})"
            return
        if self._error:
            log.warning("%s: Entra ID gives tokens again", self._shown)
        self._error = ""
        self._value, self._ends_at = value, float(token.expires_on)
        self._renew_at = self._ends_at - RENEW_AT_LIFE_LEFT * life_s * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads workers

    async def _token(self) -> "AccessToken":
        try:
            return await self._credential.get_token(self._scope)
        except Exception as error:
            if UNKNOWN_RESOURCE_CODE not in str(error) or self._scope == ALL_ACCOUNTS_SCOPE:
                raise
        self._scope = ALL_ACCOUNTS_SCOPE
        return await self._credential.get_token(self._scope)


def default_credential() -> "DefaultAzureCredential":
    """Return the credential of the machine's identity or signed-in user."""
    from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 -- an optional extra

    return DefaultAzureCredential()


class RequestBuilder:
    """Builds requests to one server; date and headers are cached for a second."""

    def __init__(self, host: str, database: str, signer: KeySigner | TokenSigner, clock: Callable[[], float]) -> None:
        self._host = host.encode()
        self._database = database
        self._signer = signer
        self._clock = clock
        self._second = -1
        self._end = self._headers = b""
        self._paths = dict[str, bytes]()

    def item(self, verb: bytes, container: str, name: str, headers: bytes = b"", body: bytes = b"") -> bytes:
        """Build an operation on an item; *headers* are whole lines. StoreMisused for invalid names."""
        item = _checked(name).encode()
        if (path := self._paths.get(container)) is None:
            path = self._paths[container] = f"dbs/{self._database}/colls/{_checked(container)}/docs/".encode()
        headers = b'x-ms-documentdb-partitionkey: ["%b"]\r\n%b' % (item, headers)
        if verb == b"POST":
            return self.build(verb, b"docs", path.removesuffix(b"/docs/"), path, headers=headers, body=body)
        path += item
        return self.build(verb, b"docs", path, path + b"/", headers=headers, body=body)

    def build(
        self, verb: bytes, kind: bytes, link: bytes, path: bytes, *, headers: bytes = b"", body: bytes = b""
    ) -> bytes:
        """Build any request; *link* is signed, without trailing slash, *path* the target without leading slash."""
        if (second := int(self._clock())) != self._second:
            self._start_second(second)
        authorization = self._signer.authorization(b"%b\n%b\n%b%b" % (verb.lower(), kind, link, self._end))
        if verb != b"GET":
            headers += b"content-length: %d\r\n" % len(body)
        return b"%b /%b HTTP/1.1\r\n%bauthorization: %b\r\n%b\r\n%b" % (
            verb, path, self._headers, authorization, headers, body
        )  # fmt: skip

    def _start_second(self, second: int) -> None:
        date = formatdate(second, usegmt=True)
        self._second, self._end = second, f"\n{date.lower()}\n\n".encode()
        self._paths.clear()  # of containers that may be gone
        self._headers = b"host: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n" % (
            self._host, AGENT, VERSION, date.encode()
        )  # fmt: skip


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise StoreMisused(f"{name[:80]!r} is not a valid name; use A-Z, a-z, 0-9, _, - and . only")
    return name
