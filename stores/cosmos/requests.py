"""Requests as bytes, dated and signed by the account's key or by a token of Entra ID, renewed in the background.

The protocol is https://learn.microsoft.com/rest/api/cosmos-db, what is signed
https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources; only headers that a response
depends on are sent.
"""

import asyncio
import hashlib
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

from hotplate.stores.cosmos.errors import CosmosUnavailable, first_line
from hotplate.stores.cosmos.url import KEY, Address
from hotplate.stores.errors import StoreMisused

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.identity.aio import DefaultAzureCredential

log = logging.getLogger(__name__)

VERSION = b"2020-07-15"
AGENT = b"hotplate"
# Of items and containers: what needs no escaping in a path, in a header and in JSON.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,1022}")

# The share of a token's life that is left when another is requested.
RENEW_AT_LIFE_LEFT = 0.2

# The pause after an attempt to get a token, whether it failed or its token was refused.
TOKEN_PAUSE_S = 30.0

ALL_ACCOUNTS_SCOPE = "https://cosmos.azure.com/.default"
# If a tenant does not know the account by its own name, tokens for all accounts are requested; the SDKs do so, too.
UNKNOWN_RESOURCE_CODE = "AADSTS500011"

# For so long after a token has come, refusals of the one before it may still arrive.
OLD_TOKEN_REFUSALS_S = 5.0

# Bytes to which HMAC fills the key of SHA-256 up.
HMAC_BLOCK_BYTES = 64


class KeySigner:
    """Signs requests with the account's key, and never shows it; 0.5 µs each. Lives as long as its client.

    HMAC is computed here (RFC 2104): to copy two hashes that hold the key already costs less than the module hmac.
    """

    __slots__ = ("_inner", "_outer", "advice")

    def __init__(self, key: str, shown: str) -> None:
        """Take the key as the portal shows it; StoreMisused if it is not base64. *shown* is for that sentence."""
        try:
            secret = b64decode(key, validate=True)
        except (NotBase64, ValueError):
            secret = b""
        if not secret:
            raise StoreMisused(f"the key of {shown} is not base64; give {KEY} as the account's page shows it") from None
        if len(secret) > HMAC_BLOCK_BYTES:
            secret = hashlib.sha256(secret).digest()
        filled = secret.ljust(HMAC_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in filled))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in filled))
        self.advice = f"{KEY}, or the file that {KEY}_FILE names, does not hold a key of this account"

    def needs_token(self) -> bool:
        return False

    async def acquire_token(self) -> None:
        """Nothing to acquire."""

    async def renew_token(self) -> bool:
        return False

    def authorization(self, text: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        signature = b2a_base64(outer.digest(), newline=False)
        escaped = signature.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D")
        return b"type%3Dmaster%26ver%3D1.0%26sig%3D" + escaped

    async def close(self) -> None:
        """Nothing to give back."""


class Credential(Protocol):
    """A source of tokens: any credential of `azure.identity.aio`."""

    async def get_token(self, *scopes: str) -> "AccessToken":
        """Return a token for *scopes*; raises whatever it likes."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


class TokenSigner:
    """Signs with the newest token of Entra ID. Lives as long as its client, which also closes the credential."""

    def __init__(self, address: Address, credential: Credential, clock: Callable[[], float]) -> None:
        """Take who gives tokens, and the *clock* (seconds since 1970) that says when they end."""
        self._shown = address.shown
        self._scope = f"https://{urlsplit(address.endpoint).hostname}/.default"
        self._credential = credential
        self._clock = clock
        self._value = b""
        self._received_at = self._renew_at = self._ends_at = float("-inf")
        self._requested_at = float("-inf")
        self._request: asyncio.Task[None] | None = None
        self._error = ""
        self.advice = f"Entra ID knows this identity, but its token is not taken; set the clock right, or give {KEY}"

    def needs_token(self) -> bool:
        """Return whether `acquire_token` must be awaited before signing; renews a token that is about to end."""
        now = self._clock()
        paused = bool(self._error) and now < self._requested_at + TOKEN_PAUSE_S
        if now >= self._renew_at and self._request is None and not paused:
            self._start_request()
        return now >= self._ends_at

    async def acquire_token(self) -> None:
        """Get what requests are signed with; raises CosmosUnavailable.

        Callers at the same time share one attempt, and fail at once for a while after a failure.
        """
        if self.needs_token():
            if self._request is not None:
                await asyncio.shield(self._request)
            if self._clock() >= self._ends_at:
                raise CosmosUnavailable(self._error, "unauthorized")

    async def renew_token(self) -> bool:
        """Get another token if the service refused this one; False if there is none yet."""
        now = self._clock()
        is_new = now < self._received_at + OLD_TOKEN_REFUSALS_S
        if self._request is None and not is_new and now >= self._requested_at + TOKEN_PAUSE_S:
            self._start_request()
        if self._request is not None:
            await asyncio.shield(self._request)
        return self._clock() < self._received_at + OLD_TOKEN_REFUSALS_S

    def authorization(self, text: bytes) -> bytes:
        del text  # a token is the same for every request
        return self._value

    async def close(self) -> None:
        if self._request is not None:
            self._request.cancel()
            await asyncio.gather(self._request, return_exceptions=True)
        await self._credential.close()

    def _start_request(self) -> None:
        self._requested_at = self._clock()
        self._request = asyncio.create_task(self._get())
        self._request.add_done_callback(self._request_done)

    def _request_done(self, request: asyncio.Task[None]) -> None:
        del request  # its failures are in `_error`
        self._request = None

    async def _get(self) -> None:
        """Get a token; a failure is logged once, and raised if no token is left."""
        try:
            token = await self._token()
            value = f"type=aad&ver=1.0&sig={token.token}".encode("ascii")
            if not token.token or any(byte <= 0x20 for byte in value):
                raise ValueError("the token is malformed")  # noqa: TRY301 -- reported like any other failure
            if token.expires_on <= self._clock():
                raise ValueError("the token has ended by this machine's clock; set it right")  # noqa: TRY301 -- as above
        except Exception as error:  # noqa: BLE001 -- credentials raise what they like; it is logged, and tried again
            if not self._error:
                log.warning("%s: no token from Entra ID: %s", self._shown, first_line(str(error)))
            self._error = f"{self._shown}: Entra ID gives no token; sign in, or give {KEY} ({first_line(str(error))})"
            return
        if self._error:
            log.warning("%s: Entra ID gives tokens again", self._shown)
        self._error = ""
        now = self._clock()
        self._value, self._received_at, self._ends_at = value, now, float(token.expires_on)
        self._renew_at = token.expires_on - RENEW_AT_LIFE_LEFT * (token.expires_on - now) * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads workers

    async def _token(self) -> "AccessToken":
        try:
            return await self._credential.get_token(self._scope)
        except Exception as error:
            if UNKNOWN_RESOURCE_CODE not in str(error) or self._scope == ALL_ACCOUNTS_SCOPE:
                raise
        self._scope = ALL_ACCOUNTS_SCOPE
        return await self._credential.get_token(self._scope)


def default_credential() -> "DefaultAzureCredential":
    """Return the identity that this machine has: a workload's, a managed one, or the user's who is signed in."""
    from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 -- an extra: accounts with a key do without

    return DefaultAzureCredential()


Signer = KeySigner | TokenSigner


class RequestBuilder:
    """Builds requests to one server; what was signed is kept for the second that it names."""

    def __init__(self, host: str, database: str, consistency: str, signer: Signer, clock: Callable[[], float]) -> None:
        self._host = host.encode()
        self._database = database
        self._consistency = consistency.encode()
        self._signer = signer
        self._clock = clock
        self._second = -1
        self._date = b""
        self._end = b""
        self._read_templates = dict[str, tuple[bytes, bytes]]()
        self._heads = dict[tuple[str, str, str], bytes]()

    def point_read(self, container: str, name: str, headers: bytes = b"") -> bytes:
        """Build the read of one item as lookups do it, with *headers*, which are whole lines.

        Raises StoreMisused for a name that needs escaping.
        """
        if not NAME.fullmatch(name):
            raise StoreMisused(f"{name[:80]!r} cannot be the id of an item: ids are of A-Z, a-z, 0-9, _, - and .")
        second = int(self._clock())
        if second != self._second:
            self._start_second(second)
        signing, request = self._read_templates.get(container) or self._read_template(container)
        item = name.encode()
        built = request % (item, item, self._signer.authorization(signing + item + self._end))
        return b"%b%b\r\n" % (built[:-2], headers) if headers else built

    def _read_template(self, container: str) -> tuple[bytes, bytes]:
        """Return what is signed before the item's id, and the request with room for id, key and signature."""
        link = f"dbs/{self._database}/colls/{checked(container)}/docs/".encode()
        request = (
            b"GET /%b%%b/ HTTP/1.1\r\nhost: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n"
            b'x-ms-consistency-level: %b\r\nx-ms-documentdb-partitionkey: ["%%b"]\r\nauthorization: %%b\r\n\r\n'
        ) % (link, self._host, AGENT, VERSION, self._date, self._consistency)
        built = self._read_templates[container] = b"get\ndocs\n" + link, request
        return built

    def build(self, verb: str, kind: str, link: str, path: str, *, headers: bytes = b"", body: bytes = b"") -> bytes:
        """Build any request; *headers* are whole lines.

        *link* is what is signed, without a slash at its end; *path* is the target, without the one at its beginning.
        """
        second = int(self._clock())
        if second != self._second:
            self._start_second(second)
        head = self._heads.get((verb, path, link)) or self._head(verb, kind, link, path)
        if verb == "GET":
            return b"%b%b\r\n" % (head, headers)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, headers, len(body), body)

    def _head(self, verb: str, kind: str, link: str, path: str) -> bytes:
        text = f"{verb.lower()}\n{kind}\n{link}".encode() + self._end
        built = (
            b"%b /%b HTTP/1.1\r\nhost: %b\r\nuser-agent: %b\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n"
            b"authorization: %b\r\n"
        ) % (verb.encode(), path.encode(), self._host, AGENT, VERSION, self._date, self._signer.authorization(text))
        self._heads[verb, path, link] = built
        return built

    def sign_again(self) -> None:
        """Sign again from now on: another token is in the place of the one that was signed with."""
        self._second = -1

    def _start_second(self, second: int) -> None:
        """Begin another second: what was signed in the one before is forgotten."""
        date = formatdate(second, usegmt=True)
        self._second, self._date, self._end = second, date.encode(), f"\n{date.lower()}\n\n".encode()
        self._read_templates.clear()
        self._heads.clear()


def checked(name: str) -> str:
    """Return the name of an item or container; StoreMisused for one that needs escaping."""
    if not NAME.fullmatch(name):
        raise StoreMisused(f"{name[:80]!r} is not a valid name; use A-Z, a-z, 0-9, _, - and . only")
    return name


def partition_key_header(name: str) -> bytes:
    """Return the header that names the partition key of an item; StoreMisused for a name that needs escaping."""
    return b'x-ms-documentdb-partitionkey: ["%b"]\r\n' % checked(name).encode()
