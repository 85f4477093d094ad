"""Who asks, by Entra ID: a token of this machine's identity, kept, and renewed behind everybody's back in good time."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from stores.cosmos.errors import CosmosUnavailable, shown
from stores.cosmos.url import KEY, Address

log = logging.getLogger(__name__)

LEFT = 0.2
"""The share of a token's life that is left when another is asked for."""

PAUSE_S = 30.0
"""How long nobody asks again after an attempt to get a token, whether it failed or its token was refused."""

EVERY_ACCOUNT = "https://cosmos.azure.com/.default"
UNKNOWN_TO_TENANT = "AADSTS500011"
"""Where a tenant does not know the account by its own name, tokens for all accounts are asked for; so do the SDKs."""

OVERLAP_S = 5.0
"""For so long after a token has come, refusals of the one before it may still arrive."""


class Token(Protocol):
    """What a credential gives: `azure.core.credentials.AccessToken`."""

    @property
    def token(self) -> str:
        """The token itself."""
        ...

    @property
    def expires_on(self) -> int:
        """When it ends, in seconds since 1970."""
        ...


class Credential(Protocol):
    """Whoever gets tokens: any credential of `azure.identity.aio`."""

    async def get_token(self, *scopes: str) -> Token:
        """Return a token for *scopes*; raises whatever it likes."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


class TokenSigner:
    """Signs with the newest token; see `Signer`. Lives as long as its driver, which it closes the credential with."""

    def __init__(self, address: Address, credential: Credential, clock: Callable[[], float]) -> None:
        """Take whom to ask for tokens, and the *clock* (seconds since 1970) that says when they end."""
        self._shown = address.shown
        self._scope = f"https://{urlsplit(address.endpoint).hostname}/.default"
        self._credential = credential
        self._clock = clock
        self._value = b""
        self._got_at = self._renew_at = self._ends_at = float("-inf")
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._trouble = ""
        self.advice = f"Entra ID knows this identity, but its token is not taken; set the clock right, or give {KEY}"

    def lacks(self) -> bool:
        """See `Signer`; also starts to renew a token that is about to end."""
        now = self._clock()
        if now >= self._renew_at and self._asking is None and now >= self._asked_at + PAUSE_S:
            self._ask()
        return now >= self._ends_at

    async def obtain(self) -> None:
        """See `Signer`; callers at the same time share one attempt, and fail at once for a while where it failed."""
        if self.lacks():
            if self._asking is not None:
                await asyncio.shield(self._asking)
            if self._clock() >= self._ends_at:
                raise CosmosUnavailable(self._trouble, "unauthorized")

    async def renew(self) -> bool:
        """See `Signer`."""
        now, before = self._clock(), self._value
        if self._asking is None:
            if now < self._got_at + OVERLAP_S:
                return True
            if now < self._asked_at + PAUSE_S:
                return False
            self._ask()
        if self._asking is not None:
            await asyncio.shield(self._asking)
        return self._value != before

    def authorization(self, text: bytes) -> bytes:
        """See `Signer`."""
        del text  # a token says who asks, whatever is asked
        return self._value

    async def close(self) -> None:
        """See `Signer`."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._credential.close()

    def _ask(self) -> None:
        self._asked_at = self._clock()
        self._asking = asyncio.create_task(self._get())
        self._asking.add_done_callback(self._asked)

    def _asked(self, asking: asyncio.Task[None]) -> None:
        del asking  # it keeps its failures to itself
        self._asking = None

    async def _get(self) -> None:
        """Get a token; a failure is told once, and to those who cannot do without."""
        try:
            got = await self._token()
            value = f"type=aad&ver=1.0&sig={got.token}".encode("ascii")
            if not got.token or any(byte <= 0x20 for byte in value):
                raise ValueError("the token is not one")  # noqa: TRY301 -- told like any other failure
            if got.expires_on <= self._clock():
                raise ValueError("the token has ended by this machine's clock; set it right")  # noqa: TRY301 -- as above
        except Exception as error:  # noqa: BLE001 -- credentials raise what they like; it is told, and tried again
            if not self._trouble:
                log.warning("%s: no token from Entra ID: %s", self._shown, shown(str(error)))
            self._trouble = f"{self._shown}: Entra ID gives no token; sign in, or give {KEY} ({shown(str(error))})"
            return
        if self._trouble:
            log.warning("%s: Entra ID gives tokens again", self._shown)
        self._trouble = ""
        now = self._clock()
        self._value, self._got_at, self._ends_at = value, now, float(got.expires_on)
        self._renew_at = got.expires_on - LEFT * (got.expires_on - now) * random.uniform(0.8, 1.2)  # noqa: S311 -- spreads workers

    async def _token(self) -> Token:
        try:
            return await self._credential.get_token(self._scope)
        except Exception as error:
            if UNKNOWN_TO_TENANT not in str(error) or self._scope == EVERY_ACCOUNT:
                raise
        self._scope = EVERY_ACCOUNT
        return await self._credential.get_token(self._scope)


def default_credential() -> Credential:
    """Return the identity that this machine has: a workload's, a managed one, or whoever is signed in."""
    from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 -- an extra: accounts with a key do without

    return DefaultAzureCredential()
