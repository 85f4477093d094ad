"""An identity of Entra ID for tests: its tokens come from an emulator's issuer, with the roles that it is given."""

import asyncio
import ssl
import urllib.parse
import urllib.request
from types import TracebackType
from typing import Self

import orjson
from azure.core.credentials import AccessToken

from tests.support.cosmos_server import Emulator

# Where ARM keeps the emulated account.
PLACE = {"subscription": "00000000-0000-0000-0000-000000000000", "resource_group": "emulation"}


def token_of(server: Emulator, scope: str, roles: str = "", life_s: int = 3600) -> AccessToken:
    """Request a token of the issuer as a credential requests one of Entra ID."""
    assert server.certificate is not None
    query = {"scope": scope, "life_s": life_s} | ({"roles": roles} if roles else {})
    url = f"{server.endpoint}__emulation/token?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(
        url, timeout=60, context=ssl.create_default_context(cafile=server.certificate)
    ) as answer:
        answer_json = orjson.loads(answer.read())
    return AccessToken(answer_json["access_token"], answer_json["expires_on"])


class Identity:
    """A credential as azure.identity.aio has them; all roles unless some are named, separated by commas."""

    def __init__(self, server: Emulator, roles: str = "") -> None:
        self._server = server
        self._roles = roles
        self.scopes = list[str]()

    async def get_token(self, *scopes: str, **_options: object) -> AccessToken:
        self.scopes.append(scopes[0])
        return await asyncio.to_thread(token_of, self._server, scopes[0], self._roles)

    async def close(self) -> None:
        """Has nothing to close."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.close()


def url_of(server: Emulator, database: str, **options: object) -> str:
    """Return the URL of a database as Entra ID's identities reach it."""
    query = {"ca": server.certificate, **options}
    host = server.endpoint.removeprefix("https://").rstrip("/")
    return f"cosmos://{host}/{database}?{urllib.parse.urlencode(query)}"
