"""Tokens of an OpenID Connect issuer, such as Entra ID, accepted alongside keys.

The issuer's keys are fetched hourly, and for an unknown one. Verified tokens are cached until they expire.
"""

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from aiohttp import BasicAuth, ClientError, ClientSession

from hotplate.base.proxies import proxy_for
from hotplate.serve.access.auth import Caller, VerifyToken, is_loopback, refused_credential
from hotplate.serve.access.keys import NAME, SCOPES
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.log_once import LogOnce
from hotplate.serve.problems import Problem
from hotplate.stores.concurrency import SharedCall

if TYPE_CHECKING:
    from jwt import PyJWK

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "ES256")
# `scp` or `scope` for users, `roles` for applications.
SCOPE_CLAIMS = ("scp", "scope", "roles")
# Allowed clock difference.
LEEWAY_S = 30
FETCH_S = 5.0
# Minimum interval between fetches with and without known keys, and lifetime of keys.
REFRESH_S = 30.0
RETRY_S = 5.0
FRESH_S = 3600.0
MAX_DOCUMENT_BYTES = 1 << 20
MAX_VERIFIED = 10_000


class IssuerUnreadable(Exception):
    """The issuer's keys could not be fetched or parsed."""


class _VerifiedToken(NamedTuple):
    caller: Caller
    until: float


class TokenVerifier:
    """Verifies tokens of one issuer. Created before the workers."""

    def __init__(self, issuer: str, audience: str) -> None:
        """*issuer* is a URL as in the `iss` claim; raises ServiceMisused if insecure."""
        import jwt  # noqa: F401, PLC0415 -- an extra; fail at the start if it is missing

        if not _is_trusted(issuer):
            raise ServiceMisused(f"the issuer {issuer!r} must be an https:// URL; http:// is for tests on loopback")
        if not audience:
            raise ServiceMisused("the audience is empty; give --oidc-audience what tokens for this service name")
        self._issuer = issuer
        self._audience = audience
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._unreadable = LogOnce()
        self._fetching = SharedCall(self._refresh_keys, _issuer_unavailable)
        self._verified = dict[bytes, _VerifiedToken]()

    async def caller(self, token: str, digest: bytes) -> Caller:
        """Verify a token, a JWT, and return the client that it names; raises a Problem: 401, or 503 without keys.

        *digest* is the SHA-256 of the token: the results for up to MAX_VERIFIED tokens are cached by it until they
        expire, the oldest ones are evicted.
        """
        self._renew_stale_keys()  # also for cached tokens, whose keys may be withdrawn
        verified = self._verified.get(digest)
        if verified is not None and time.time() < verified.until:
            return verified.caller

        verified = await self._verify_token(token)
        if len(self._verified) >= MAX_VERIFIED:
            del self._verified[next(iter(self._verified))]
        self._verified.pop(digest, None)  # insert it last: the first is evicted
        self._verified[digest] = verified
        return verified.caller

    async def _verify_token(self, token: str) -> _VerifiedToken:
        """Check the signature, issuer, audience and times of a token, and return the caller that its claims name.

        Raises a Problem: 401 if the token is refused, 503 if the issuer's keys could not be fetched.
        """
        import jwt  # noqa: PLC0415 -- an extra

        try:
            header = jwt.get_unverified_header(token)
            key = await self._signing_key(str(header.get("kid")))
            if header.get("alg") != key.algorithm_name:
                raise jwt.InvalidAlgorithmError

            claims = jwt.decode(
                token,
                key.key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
            return _verified_from_claims(claims)
        # These errors help the owner of a valid token, and tell an attacker nothing.
        except (
            jwt.ExpiredSignatureError, jwt.ImmatureSignatureError, jwt.InvalidAudienceError, jwt.InvalidIssuerError,
        ) as error:  # fmt: skip
            raise _invalid_token(f"the token is refused: {error}") from None
        # TypeError or ValueError: a key of another algorithm; the last two: claims of other types.
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError):
            raise _invalid_token("the token is not a valid one for this service") from None

    def _renew_stale_keys(self) -> None:
        """Start to fetch the keys again if they are too old; they are used meanwhile."""
        is_stale = time.monotonic() >= self._fetched_at + FRESH_S
        if self._keys and is_stale and self._may_fetch:
            self._fetching.start()

    async def _signing_key(self, identifier: str) -> "PyJWK":
        """Return the issuer's public key with this identifier (`kid`), after fetching the keys if needed.

        For an unknown key, this waits for a fetch, but does not begin one too soon after the last: anyone may send
        tokens with invented identifiers. Concurrent requests share a fetch. Raises a Problem: 401 if the issuer does
        not publish the key, 503 if no keys could be fetched yet.
        """
        if identifier not in self._keys and (self._fetching.is_running or self._may_fetch):
            await self._fetching.result()  # of the fetch in progress, or of a new one

        key = self._keys.get(identifier)
        if key is not None:
            return key

        if not self._keys:
            raise _issuer_unavailable()
        raise _invalid_token("the token is signed by a key that its issuer does not publish")

    @property
    def _may_fetch(self) -> bool:
        """Whether the pause since the last attempt is over."""
        pause_s = REFRESH_S if self._keys else RETRY_S
        return time.monotonic() >= self._tried_at + pause_s

    async def _refresh_keys(self) -> None:
        """Replace the keys by those that the issuer publishes. If they cannot be fetched, keep them, and log it once.

        Cached results of verified tokens are dropped with the keys.
        """
        try:
            keys = await self._fetch_published_keys()
        except IssuerUnreadable as error:
            if self._unreadable.met(str(error)):
                log.warning("the keys of the issuer %s: %s; the previous keys stay in use", self._issuer, error)
        else:
            self._fetched_at = time.monotonic()
            self._unreadable.end()
            self._keys = keys
            self._verified = {}  # a key may have been withdrawn or replaced under the same id
        finally:
            self._tried_at = time.monotonic()

    async def _fetch_published_keys(self) -> "dict[str, PyJWK]":
        """Fetch the issuer's public keys for signatures, by their identifiers (`kid`); raises IssuerUnreadable.

        By OpenID Connect Discovery: the issuer's configuration has the URL of a JSON Web Key Set.
        """
        import jwt  # noqa: PLC0415 -- an extra

        try:
            async with asyncio.timeout(FETCH_S), ClientSession() as session:
                document = await _fetch_json_object(
                    session, self._issuer.rstrip("/") + "/.well-known/openid-configuration"
                )
                if document.get("issuer") != self._issuer:
                    raise IssuerUnreadable("its configuration names another issuer")
                keys = await _fetch_json_object(session, str(document.get("jwks_uri")))
            published = jwt.PyJWKSet.from_dict(keys).keys
        # PyJWT raises the last three for keys with fields of other types.
        except (TimeoutError, ClientError, ValueError, jwt.PyJWTError, TypeError, LookupError, AttributeError) as error:
            raise IssuerUnreadable(f"they cannot be fetched ({type(error).__name__})") from error

        # Others are for encryption, or of a type that ALGORITHMS do not use.
        usable = (key for key in published if key.key_type in ("RSA", "EC") and key.public_key_use in (None, "sig"))
        return {key.key_id: key for key in usable if key.key_id}


def verifier_of(issuer: str | None, audience: str | None) -> VerifyToken | None:
    """Return a token verifier; None if no issuer is configured. Raises ServiceMisused."""
    if issuer is None and audience is None:
        return None
    if issuer is None or audience is None:
        raise ServiceMisused("tokens take an issuer and an audience: give both --oidc-issuer and --oidc-audience")
    return TokenVerifier(issuer, audience).caller


async def _fetch_json_object(session: ClientSession, url: str) -> dict[str, Any]:
    """Fetch a document of the issuer, through the proxy of the environment if there is one.

    Raises IssuerUnreadable if the URL is not trusted (https://), or the document too large or not an object.
    """
    if not _is_trusted(url):
        raise IssuerUnreadable("its configuration names keys that are not at an https:// URL")

    proxy = proxy_for(url)
    proxy_url = None
    proxy_auth = None
    if proxy is not None:
        proxy_url = proxy.url
        if proxy.credentials is not None:
            proxy_auth = BasicAuth(*proxy.credentials)

    async with session.get(
        url, allow_redirects=False, raise_for_status=True, proxy=proxy_url, proxy_auth=proxy_auth
    ) as response:
        body = b""
        async for chunk in response.content.iter_chunked(65_536):
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise IssuerUnreadable(f"a document has more than {MAX_DOCUMENT_BYTES} bytes")

    document = orjson.loads(body)
    if not isinstance(document, dict):
        raise IssuerUnreadable("a document is not a JSON object")
    return document


def _issuer_unavailable() -> Problem:
    detail = "tokens cannot be verified yet: the keys of their issuer could not be fetched"
    return Problem(503, "issuer-unavailable", detail, {"Retry-After": f"{RETRY_S:.0f}"})


def _invalid_token(detail: str) -> Problem:
    return refused_credential("invalid-token", detail)


def _is_trusted(url: str) -> bool:
    with suppress(ValueError):
        parts = urlsplit(url)
        host = parts.hostname or ""
        return (parts.scheme == "https" and bool(host)) or (parts.scheme == "http" and is_loopback(host))
    return False


def _verified_from_claims(claims: dict[str, Any]) -> _VerifiedToken:
    """Return the caller of a verified token, from its *claims* by name, and until when the token is valid.

    Scopes are in any of SCOPE_CLAIMS, as a text with spaces or as a list; those of other services are ignored. The
    caller's name is that of the application. Raises TypeError and OverflowError for claims of other types.
    """
    granted = set[str]()
    for claim in SCOPE_CLAIMS:
        scopes = claims.get(claim, "")
        granted.update(scopes.split() if isinstance(scopes, str) else scopes)

    name = next((claims[claim] for claim in ("azp", "appid", "client_id") if claim in claims), "")
    is_valid_name = isinstance(name, str) and NAME.fullmatch(name)
    caller = Caller(name if is_valid_name else "token", frozenset(SCOPES) & granted)
    return _VerifiedToken(caller, float(claims["exp"]) + LEEWAY_S)
