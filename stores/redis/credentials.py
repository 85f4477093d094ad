"""Credentials that change while connections are open: passwords in files, and tokens of Entra ID.

A password is read from its file for each new connection. Redis does not end the others if it changes.

A provider of redis-py, such as `redis-entraid`, gets tokens and renews them. A renewed token replaces all connections
of a store by new ones, and the former end after their commands. redis-py authenticates those of its pools again, but
while others may take them (`ConnectionPool.release`), and tells one pool only. The provider is called in threads,
because azure-identity blocks. `redis-entraid` renews no more after a renewal that failed, and is then created again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import cast

from redis.credentials import CredentialProvider, StreamingCredentialProvider
from redis.exceptions import ConnectionError  # noqa: A004 -- redis-py's name

from hotplate.stores.concurrency import SharedCall, end_tasks
from hotplate.stores.errors import StoreMisused, StoreUnavailable, extra_installed
from hotplate.stores.store import TOKEN, Observer
from hotplate.stores.urls import SecretFile

log = logging.getLogger(__name__)

SCOPE = "https://redis.azure.com/.default"
RETRY_S = 5.0  # after a failed renewal
REWRITE_S = 0.5  # the most that a rotation takes to rewrite the file of a password
REWRITE_PAUSE_S = 0.02

CreateProvider = Callable[[], StreamingCredentialProvider]
Renew = Callable[[], Awaitable[object]]


class PasswordFile(CredentialProvider):
    """A user, and the password that its file has when a connection is opened.

    A rotation may truncate or remove the file before it writes the new password, so a file without one is read again
    for REWRITE_S.
    """

    def __init__(self, user: str, file: SecretFile) -> None:
        self._user = user
        self._file = file

    async def get_credentials_async(self) -> tuple[str, str]:
        """Return user and password; raises redis-py's ConnectionError."""
        give_up_at = time.monotonic() + REWRITE_S
        while True:
            try:
                return self._user, await asyncio.to_thread(self._file.read)
            except StoreMisused as error:
                if time.monotonic() >= give_up_at:
                    raise ConnectionError(str(error)) from error
            await asyncio.sleep(REWRITE_PAUSE_S)


class Credentials(CredentialProvider):
    """The user and password of all connections of a store; failures to get or renew them are counted."""

    def __init__(self, create: CreateProvider, observer: Observer | None = None) -> None:
        self._create = create
        self._observer = observer
        self._provider: StreamingCredentialProvider | None = None
        self._fetching = SharedCall(self._fetch, lambda: StoreUnavailable("the store was closed"))
        self._renew: Renew | None = None
        self._is_due = asyncio.Event()
        self._renewing: asyncio.Task[None] | None = None
        """Replaces open connections whenever that is due; started with the first provider."""

    def on_renewal(self, renew: Renew) -> None:
        """Call *renew* when there are new credentials, to replace open connections.

        It is called again, RETRY_S later, if it raises StoreUnavailable.
        """
        self._renew = renew

    async def get_credentials_async(self) -> tuple[str, str]:
        """Return user and password; raises redis-py's ConnectionError."""
        return await self._fetching.result()

    async def close(self) -> None:
        """Stop renewals."""
        self._renew = None
        try:
            if self._provider is not None:
                self._provider.on_next(None)  # type: ignore[arg-type]  # redis-entraid renews no more then
        finally:
            if self._renewing is not None:
                await end_tasks(self._renewing)
            await self._fetching.close()

    async def _fetch(self) -> tuple[str, str]:
        """Return the provider's user and password; the first call creates the provider, which then renews them."""
        try:
            if self._provider is None:
                self._provider = self._new_provider()
            credentials = await asyncio.to_thread(self._provider.get_credentials)
        except Exception as error:
            self._count_failure()
            raise ConnectionError(f"no credentials: {str(error).partition(chr(10))[0]}") from error
        user, password = cast("tuple[str, str]", credentials)
        return user, password

    def _new_provider(self) -> StreamingCredentialProvider:
        """Create a provider, whose callbacks run in the store's loop; it calls them perhaps in another thread."""
        loop = asyncio.get_running_loop()

        def call(function: Callable[[], None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(function)

        def note_failure(error: Exception) -> None:
            log.warning("the credentials of Redis could not be renewed (%s); trying again", type(error).__name__)
            call(self._replace_provider)

        provider = self._create()
        provider.on_next(lambda _: call(self._is_due.set))
        provider.on_error(note_failure)
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew_when_due())
        return provider

    def _replace_provider(self) -> None:
        """Let another provider be created after a failed renewal."""
        self._count_failure()
        self._provider = None
        self._is_due.set()

    async def _renew_when_due(self) -> None:
        """Replace open connections when there are new credentials; after a failure again, RETRY_S later."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            try:
                if self._provider is None or self._fetching.is_running:
                    await self._fetching.result()  # one that began earlier may return the former credentials
                if self._renew is not None:
                    await self._renew()
            except (ConnectionError, StoreUnavailable) as error:
                log.warning("open connections keep their former credentials: %s", error)
                if isinstance(error, StoreUnavailable):  # others are counted where they arise
                    self._count_failure()
                await asyncio.sleep(RETRY_S)
                self._is_due.set()

    def _count_failure(self) -> None:
        if self._observer is not None:
            self._observer.failed(TOKEN)


def entra_provider() -> CreateProvider:
    """Return a function that creates a provider by azure-identity's default credential.

    StoreMisused without the extra `redis-entra`.
    """
    with extra_installed("redis-entra"):
        from redis_entraid.cred_provider import create_from_default_azure_credential  # noqa: PLC0415 -- an extra

    return lambda: create_from_default_azure_credential((SCOPE,))
