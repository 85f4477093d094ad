"""HTTP requests about items, signed by the account's key or a token of Entra ID.

Protocol: https://learn.microsoft.com/rest/api/cosmos-db. Signature:
https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources.
"""

import asyncio
import hmac
import logging
import random
import re
from abc import ABC, abstractmethod
from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hotplate.stores.concurrency import SharedCall
from hotplate.stores.cosmos.errors import CosmosDenied, CosmosUnavailable, first_line
from hotplate.stores.cosmos.url import KEY, Address
from hotplate.stores.errors import StoreClosed, StoreMisused
from hotplate.stores.store import TOKEN, Observer

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

log = logging.getLogger(__name__)

VERSION = b"2020-07-15"
# Names that need no escaping in a path, a header or JSON.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,1022}")

# Share of a token's life left at its renewal.
RENEW_AT_LIFE_LEFT = 0.2
# Pause before the file of a refused key is read again.
KEY_PAUSE_S = 0.5
# Pause after a failed request for a token.
TOKEN_PAUSE_S = 30.0


class Signer(ABC):
    """Authorizes requests."""

    version = 0
    """Number of times that the credential was replaced after a refusal."""

    async def prepare(self, deadline_s: float) -> None:  # noqa: B027 -- a key needs nothing
        """Wait until `authorization` can be called, until *deadline_s* (loop time); raises CosmosUnavailable."""

    @abstractmethod
    def authorization(self, text: bytes) -> bytes:
        """Return the header `authorization` of a request; *text* is what the service signs, too, and compares."""

    async def has_replaced(self, version: int) -> bool:
        """Return whether the credential that was refused, that of a *version*, is replaced by now."""
        return version != self.version

    async def close(self) -> None:  # noqa: B027 -- as above
        """End what the signer does in the background."""


class KeySigner(Signer):
    """Signs requests with the account's key. A key from a file is read again when the service refuses it."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._key = address.key
        self._hmac = self._hmac_of(address.key)
        self._reading = SharedCall(self._read_again, partial(StoreClosed, address.shown), (KEY_PAUSE_S, KEY_PAUSE_S))
        self._error = ""
        """Why the file was of no use when it was last read; empty after a success."""

    async def has_replaced(self, version: int) -> bool:
        """Return whether the refused key is replaced by now; reads its file, unless that failed a moment ago."""
        if version == self.version and self._address.key_from is not None:
            with suppress(StoreMisused):
                await self._reading.result()
        return version != self.version

    async def close(self) -> None:
        await self._reading.close()

    async def _read_again(self) -> None:
        """Use the key that its file has now; only the first of consecutive failures is logged.

        Raises StoreMisused if it cannot be read, or is the one that was refused.
        """
        try:
            key = await asyncio.to_thread(self._address.read_key)
            signer = self._hmac_of(key)
            if key == self._key:
                raise StoreMisused("its file still has the same one")  # noqa: TRY301 -- reported below
        except StoreMisused as error:
            if str(error) != self._error:
                log.warning("%s refuses the key, and it cannot be replaced: %s", self._address.shown, error)
            self._error = str(error)
            raise

        self._error = ""
        self._key = key
        self._hmac = signer
        self.version += 1
        log.info("the key of %s was replaced by the one that its file has now", self._address.shown)

    def _hmac_of(self, key: str | None) -> hmac.HMAC:
        try:
            secret = b64decode(key or "", validate=True)
        except ValueError:  # binascii.Error is one
            secret = b""
        if not secret:
            shown = self._address.shown
            raise StoreMisused(f"the key of {shown} is not base64; give {KEY} as the account's page shows it")
        return hmac.new(secret, digestmod="sha256")

    def authorization(self, text: bytes) -> bytes:
        signer = self._hmac.copy()  # takes 1.4 µs, `hmac.digest` 2
        signer.update(text)
        signature = b2a_base64(signer.digest(), newline=False)
        escaped = signature.replace(b"+", b"%2B").replace(b"/", b"%2F").replace(b"=", b"%3D")
        return b"type%3Dmaster%26ver%3D1.0%26sig%3D" + escaped


class TokenSigner(Signer):
    """Authorizes requests by a token of Entra ID, renewed in the background; closes the credential."""

    def __init__(
        self,
        address: Address,
        credential: "AsyncTokenCredential",
        clock: Callable[[], float],
        observer: Observer | None = None,
    ) -> None:
        """*clock* is epoch seconds; *observer* counts failures to get a token."""
        self._shown = address.shown
        self._observer = observer
        self._scope = f"https://{urlsplit(address.endpoint).hostname}/.default"
        self._credential = credential
        self._clock = clock
        self._value = b""
        """The header `authorization`."""

        self._renew_at = float("-inf")
        self._expires_at = float("-inf")
        self._renewal = SharedCall(self._renew, partial(StoreClosed, address.shown))
        self._error = ""
        """Why the last renewal failed; empty after a success."""

    async def prepare(self, deadline_s: float) -> None:
        """Wait for a token until *deadline_s* (loop time); one that expires soon is renewed in the background.

        Raises CosmosUnavailable without a token in time. After a failure of Entra ID, no token is asked for during
        TOKEN_PAUSE_S, and the error is raised immediately.
        """
        now = self._clock()
        if now >= self._renew_at:
            self._renewal.start()
        if now < self._expires_at:
            return  # the present token is valid, even if it is being renewed

        if self._renewal.is_running:
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._renewal.result()
            except TimeoutError:
                raise CosmosUnavailable(f"{self._shown}: Entra ID gave no token in time", "timeout") from None
        if self._error and self._clock() >= self._expires_at:
            raise CosmosDenied(self._error, "unauthorized")

    def authorization(self, text: bytes) -> bytes:
        del text  # a token signs any request
        return self._value

    async def close(self) -> None:
        """Stop renewals, and close the credential."""
        await self._renewal.close()
        await self._credential.close()

    async def _renew(self) -> None:
        """Get a token, and decide when to renew it; only the first of consecutive failures is logged.

        It is renewed when RENEW_AT_LIFE_LEFT of its life is left, at a random time around that.
        """
        self._renew_at = self._clock() + TOKEN_PAUSE_S  # if this attempt fails
        try:
            token = await self._credential.get_token(self._scope)
            life_s = token.expires_on - self._clock()
            if life_s <= 0:
                raise ValueError("it has expired by this machine's clock")  # noqa: TRY301 -- reported below
            self._value = f"type=aad&ver=1.0&sig={token.token}".encode("ascii")
        except Exception as error:  # noqa: BLE001 -- credentials raise anything
            reason = first_line(str(error))
            if self._observer is not None:
                self._observer.failed(TOKEN)
            if not self._error:
                log.warning("%s: no token from Entra ID: %s", self._shown, reason)
            self._error = f"{self._shown}: Entra ID gives no token; sign in, or give {KEY} ({reason})"
            return

        self._error = ""
        self._expires_at = float(token.expires_on)
        self._renew_at = self._expires_at - RENEW_AT_LIFE_LEFT * life_s * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads workers


def default_credential() -> "AsyncTokenCredential":
    """Return azure-identity's credential, which looks for an identity in the environment, the machine and the CLI."""
    from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 -- an optional extra

    return DefaultAzureCredential()


class RequestBuilder:
    """Builds requests to one server; what depends on the date is cached for a second."""

    def __init__(self, host: str, database: str, signer: Signer, clock: Callable[[], float]) -> None:
        self._host = host.encode()
        self._database = database
        self._signer = signer
        self._clock = clock
        self._second = -1
        """Time, in whole seconds, of the date in `_signed_end` and `_headers`."""

        self._signed_end = b""
        """End of the text to sign."""

        self._headers = b""
        """Headers of all requests."""

        self._paths = dict[str, bytes]()
        """Path of the items in a container, by its name."""

    def item(self, verb: bytes, container: str, name: str, headers: bytes = b"", body: bytes = b"") -> bytes:
        """Build a request for an operation on an item: GET, POST (create), PUT (replace) or DELETE.

        *name* is the item's id and its partition key, and *headers* are further lines of the header, each with its line
        end. StoreMisused for invalid names.
        """
        item = _checked(name).encode()
        path = self._paths.get(container)
        if path is None:
            path = f"dbs/{self._database}/colls/{_checked(container)}/docs/".encode()
            self._paths[container] = path

        headers = b'x-ms-documentdb-partitionkey: ["%b"]\r\n%b' % (item, headers)
        if verb == b"POST":  # the signature of a creation names the container, as the item has no address yet
            return self.build(verb, b"docs", path.removesuffix(b"/docs/"), path, headers=headers, body=body)

        link = path + item
        return self.build(verb, b"docs", link, link + b"/", headers=headers, body=body)

    def build(
        self, verb: bytes, kind: bytes, link: bytes, path: bytes, *, headers: bytes = b"", body: bytes = b""
    ) -> bytes:
        """Build a signed HTTP request; the signature covers its verb, *kind*, *link* and date.

        *kind* is the type of the resource, such as `docs` for items, and *link* its address in the account, such as
        `dbs/shop/colls/release-7f3a/docs/user.NDI`. *path* is the target of the request without leading slash, and
        *headers* are further lines, each with its line end.
        """
        # The date has whole seconds, so all text that depends on it is built once a second.
        second = int(self._clock())
        if second != self._second:
            date = formatdate(second, usegmt=True)
            self._second = second
            self._signed_end = f"\n{date.lower()}\n\n".encode()
            self._headers = b"host: %b\r\nuser-agent: hotplate\r\nx-ms-version: %b\r\nx-ms-date: %b\r\n" % (
                self._host, VERSION, date.encode()
            )  # fmt: skip
            self._paths.clear()  # so that it does not grow by each container that was ever read

        text_to_sign = b"%b\n%b\n%b%b" % (verb.lower(), kind, link, self._signed_end)
        authorization = self._signer.authorization(text_to_sign)
        if verb != b"GET":
            headers += b"content-length: %d\r\n" % len(body)
        return b"%b /%b HTTP/1.1\r\n%bauthorization: %b\r\n%b\r\n%b" % (
            verb, path, self._headers, authorization, headers, body
        )  # fmt: skip


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise StoreMisused(f"{name[:80]!r} is not a valid name; use A-Z, a-z, 0-9, _, - and . only")
    return name
