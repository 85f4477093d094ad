"""Who may ask: requests signed with the account's key or a token of the test issuer, by a clock that is right.

https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources tells what is signed.
"""

import base64
import binascii
import hmac
from calendar import timegm
from email.utils import parsedate
from functools import lru_cache
from urllib.parse import unquote

from bench.cosmos_emulator.errors import EmulatorMisused, Refused
from bench.cosmos_emulator.messages import Request
from bench.cosmos_emulator.tokens import DATA, Issuer

SKEW_S = 15 * 60
"""A request whose date is further off than this is refused, as the service does."""

WELL_KNOWN_KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
"""Not a secret: the key of Microsoft's own emulator, which its documentation prints and tools expect.

https://learn.microsoft.com/azure/cosmos-db/emulator#authentication
"""


class Keeper:
    """Checks signatures and tokens; lives as long as the emulator, and tells nobody its key."""

    def __init__(self, key: str, issuer: Issuer | None) -> None:
        try:
            secret = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise EmulatorMisused("the account's key is not base64") from None
        if not secret:
            raise EmulatorMisused("the account's key is empty")
        self._signer = hmac.new(secret, digestmod="sha256")
        self.issuer = issuer

    def check(self, request: Request, resource_type: str, link: str, now: float) -> tuple[str, ...] | None:
        """Refuse with 401 what is not signed, is signed wrongly, or says another time than *now*.

        Returns the roles of a token; None for the key, which may do everything.
        """
        given = unquote(request.text(b"authorization"))
        date = request.text(b"x-ms-date") or request.text(b"date")
        if given.startswith("type=aad&"):
            return self.roles(given.partition("&sig=")[2], now, DATA)
        seconds = _seconds(date)
        if seconds is None or abs(seconds - now) > SKEW_S:
            raise Refused(
                401, f"x-ms-date must be an RFC 1123 date within {SKEW_S // 60} minutes of the server's clock"
            )
        head, _, signature = given.partition("&sig=")
        if head != "type=master&ver=1.0":
            raise Refused(
                401, "the request is not signed: Authorization must be type=master or type=aad, ver=1.0 and sig"
            )
        signer = self._signer.copy()
        signer.update(f"{request.method.lower()}\n{resource_type}\n{link}\n{date.lower()}\n\n".encode())
        wanted = base64.b64encode(signer.digest())
        if not hmac.compare_digest(wanted, signature.encode()):
            raise Refused(
                401,
                "The input authorization token can't serve the request. The wrong key is being used or the expected "
                f"payload is not built as per the protocol. The emulator signed: verb {request.method.lower()}, "
                f"type {resource_type}, link {link}, date {date.lower()[:40]}",
            )
        return None

    def roles(self, token: str, now: float, audience: str) -> tuple[str, ...]:
        """Return the roles of a token for *audience*; refuse with 401 any other."""
        if self.issuer is None:
            raise Refused(401, "Entra tokens are off: start with --entra-issuer, and take them from the emulator")
        return self.issuer.check(token, now, audience)


@lru_cache(256)
def _seconds(date: str) -> float | None:
    try:
        parsed = parsedate(date)
        return None if parsed is None else timegm(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
