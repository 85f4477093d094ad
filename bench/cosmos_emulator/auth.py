"""Authentication by the account's key.

https://learn.microsoft.com/rest/api/cosmos-db/access-control-on-cosmosdb-resources describes the signatures.
"""

import base64
import binascii
import hmac
from calendar import timegm
from email.utils import parsedate
from functools import lru_cache
from urllib.parse import unquote

from hotplate.bench.cosmos_emulator.http import EmulatorMisused, HttpError, Request

# A request whose date is further off than this is refused, as the service does.
MAX_CLOCK_SKEW_S = 15 * 60

# Not a secret: the key of Microsoft's own emulator, which its documentation prints and tools expect.
# https://learn.microsoft.com/azure/cosmos-db/emulator#authentication
WELL_KNOWN_KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="

QUOTED = "type%3Dmaster%26ver%3D1.0%26sig%3D"
QUOTING = str.maketrans({"+": "%2B", "/": "%2F", "=": "%3D"})


class Authenticator:
    """Checks the signatures of requests."""

    def __init__(self, key: str) -> None:
        try:
            secret = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise EmulatorMisused("the account's key is not base64") from None
        if not secret:
            raise EmulatorMisused("the account's key is empty")
        self._signer = hmac.new(secret, digestmod="sha256")

    def check(self, request: Request, resource_type: str, link: str, operation: str, now: float) -> None:
        """Raise 401 for a request that is not signed, is signed wrongly, or has a date too far from *now*.

        The key allows every *operation*.
        """
        del operation
        date = request.header(b"x-ms-date") or request.header(b"date")
        seconds = _seconds_of(date)
        if seconds is None or abs(seconds - now) > MAX_CLOCK_SKEW_S:
            minutes = MAX_CLOCK_SKEW_S // 60
            raise HttpError(401, f"x-ms-date must be an RFC 1123 date within {minutes} minutes of the server's clock")
        authorization, verb, date = request.header(b"authorization"), request.method.lower(), date.lower()
        signer = self._signer.copy()
        signer.update(f"{verb}\n{resource_type}\n{link}\n{date}\n\n".encode())
        signature = base64.b64encode(signer.digest()).decode()
        if authorization == QUOTED + signature.translate(QUOTING):
            return  # as most clients quote it; unquoting takes longer than all else here
        scheme, _, given = unquote(authorization).partition("&sig=")
        if scheme != "type=master&ver=1.0":
            raise HttpError(401, "the request is not signed: Authorization must be type=master, ver=1.0 and sig")
        if given != signature:
            raise HttpError(
                401,
                "The input authorization token can't serve the request. The wrong key is being used or the expected "
                f"payload is not built as per the protocol. The emulator signed: verb {verb}, "
                f"type {resource_type}, link {link}, date {date[:40]}",
            )


@lru_cache(256)
def _seconds_of(date: str) -> float | None:
    try:
        parsed = parsedate(date)
        return None if parsed is None else timegm(parsed)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
