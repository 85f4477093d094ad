"""Credentials that rotate: a user of Redis servers that is replaced by another, as a token of Entra ID is."""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.auth.err import RequestTokenErr
from redis.auth.idp import IdentityProviderInterface
from redis.auth.token import SimpleToken, TokenInterface
from redis.credentials import StreamingCredentialProvider

from tests.support.redis_server import SOON_S, RedisServer


@dataclass
class RotatingProvider(StreamingCredentialProvider):
    """The current user of some servers; a new one replaces it at each rotation, and the former is deleted."""

    servers: Sequence[RedisServer]
    user: str = ""
    password: str = ""
    asked: int = 0
    _listener: Callable[[TokenInterface], Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._create_user()

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return self.user, self.password

    def on_next(self, callback: Callable[[TokenInterface], Any] | None) -> None:
        self._listener = callback

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        del callback  # this provider never fails

    def is_streaming(self) -> bool:
        return self._listener is not None

    def create(self) -> StreamingCredentialProvider:
        return self

    def replace_user(self) -> None:
        """Create another user, and tell the store."""
        self._create_user()
        assert self._listener is not None
        now_ms = time.time() * 1000
        self._listener(SimpleToken(self.password, now_ms + 3_600_000, now_ms, {"oid": self.user}))

    async def rotate(self) -> None:
        """Replace the user, wait until no connection is the former's, and delete that, which would cut them."""
        former = self.user
        self.replace_user()
        await self.wait_until_unused(former)
        for server in self.servers:
            server.execute_command("ACL", "DELUSER", former)

    async def wait_until_unused(self, user: str) -> None:
        """Wait until no connection is a user's."""
        deadline_s = time.monotonic() + SOON_S
        while connections := await asyncio.to_thread(_clients_of, self.servers, user):
            assert time.monotonic() < deadline_s, f"connections of the former user: {connections}"
            await asyncio.sleep(0.05)

    def _create_user(self) -> None:
        self.user = f"user-{secrets.token_hex(4)}"
        self.password = secrets.token_hex(16)
        for server in self.servers:
            server.execute_command("ACL", "SETUSER", self.user, "on", f">{self.password}", "~*", "&*", "+@all")


def _clients_of(servers: Sequence[RedisServer], user: str) -> list[dict[str, str]]:
    """Return the connections of *user*, as CLIENT LIST shows them.

    It blocks, so it is called in a thread: on a busy machine, the event loop would have no time left to renew them.
    """
    alive = [server for server in servers if server.process is not None]
    return [client for server in alive for client in server.execute_command("CLIENT LIST") if client["user"] == user]


class SlowProvider(RotatingProvider):
    """Looks credentials up at once, but returns them only while *may_return* is set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.may_return = threading.Event()
        self.may_return.set()

    def get_credentials(self) -> tuple[str, str]:
        credentials = super().get_credentials()
        assert self.may_return.wait(SOON_S)
        return credentials


@dataclass
class FakeIdentity(IdentityProviderInterface):
    """An identity endpoint with tokens that are passwords of users that it creates on a server."""

    server: RedisServer
    life_s: float
    is_down: bool = False
    is_known: bool = True
    """Whether the server accepts new tokens."""
    requests: int = 0
    _users: list[str] = field(default_factory=list)

    def request_token(self, force_refresh: bool = False) -> TokenInterface:  # noqa: FBT001, FBT002 -- redis-py's signature
        del force_refresh
        self.requests += 1
        if self.is_down:
            raise RequestTokenErr("the identity endpoint is down")  # type: ignore[no-untyped-call]  # redis-py types the rest
        user = f"user-{secrets.token_hex(4)}"
        password = secrets.token_hex(16)
        if self.is_known:
            self.server.execute_command("ACL", "SETUSER", user, "on", f">{password}", "~*", "&*", "+@all")
            self._users.append(user)
        now_ms = time.time() * 1000
        return SimpleToken(password, now_ms + self.life_s * 1000, now_ms, {"oid": user})

    def revoke_all(self) -> None:
        """Delete all users, which ends their connections."""
        self.server.execute_command("ACL", "DELUSER", *self._users)
        self._users.clear()
