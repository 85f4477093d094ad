"""What an account says of itself: its regions, which of them takes writes, and how consistent it is."""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stores.cosmos.answers import Malformed

SESSIONS = ("Strong", "BoundedStaleness", "Session")
"""Default consistencies of accounts that let requests ask for what their session has seen."""


STRIKES = 3
"""After so many failures in a row a region is left; a connection that cannot be made is enough by itself."""


class Place(NamedTuple):
    """A region and its URL, without a slash at its end."""

    name: str
    url: str


class Places(NamedTuple):
    """The account, as it answers `GET /`."""

    written: Place
    readable: tuple[Place, ...]
    many_writers: bool
    session: bool


def places_of(told: dict[str, Any], account: str) -> Places:
    """Understand the answer of the account at the URL *account*. Raises Malformed."""
    secure = account.startswith("https:")
    written = _listed(told.get("writableLocations"), secure=secure)
    readable = _listed(told.get("readableLocations"), secure=secure)
    policy = told.get("userConsistencyPolicy")
    level = policy.get("defaultConsistencyLevel") if isinstance(policy, dict) else None
    many = told.get("enableMultipleWriteLocations") is True or len(written) > 1
    return Places(written[0], readable, many, level in SESSIONS)


def _listed(told: object, *, secure: bool) -> tuple[Place, ...]:
    if not isinstance(told, list) or not told:
        raise Malformed("an account without regions")
    return tuple(_place(one, secure=secure) for one in told)


def _place(told: object, *, secure: bool) -> Place:
    """Understand one region; what is asked by https is never sent on in the clear."""
    name, url = (told.get("name"), told.get("databaseAccountEndpoint")) if isinstance(told, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(url, str):
        raise Malformed("a region without name or endpoint")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Malformed("a region whose endpoint is no URL") from None
    if not host or parts.scheme not in ("http", "https") or (secure and parts.scheme != "https"):
        raise Malformed("a region whose endpoint cannot be trusted")
    bracketed = f"[{host}]" if ":" in host else host
    return Place(name, f"{parts.scheme}://{bracketed}:{port or (443 if parts.scheme == 'https' else 80)}")
