"""Tokens of an issuer: which are taken, which are refused and why, and how seldom the issuer is asked."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

import hotplate.serve.access.oidc
from hotplate.serve.access.auth import Guard
from hotplate.serve.access.keys import ADMIN, READ, create
from hotplate.serve.access.oidc import TokenVerifier, verifier_of
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.problems import Problem
from tests.support.http_server import http_server
from tests.support.service import UNTIL_S, a_list, published, running
from tests.support.waiting import until_true

AUDIENCE = "api://hotplate"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Issuer:
    """Signs tokens and publishes its keys; tests can change and break the published documents."""

    def __init__(self, url: str, key: PrivateKey) -> None:
        self.url = url
        self.keys = {"first": key}
        self.documents: dict[str, bytes] = {}
        """What is answered instead of the right document, by path."""
        self.fetched = list[str]()
        self.pause_s = 0.0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def token(self, kid: str = "first", *, key: PrivateKey | None = None, **claims: object) -> str:
        """Sign a token for reading that is good for a minute; a claim that is given as None is left out."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "nbf": now - 1, "exp": now + 60, "scp": "read"}
        chosen = {name: value for name, value in (good | claims).items() if value is not None}
        private = key or self.keys[kid]
        algorithm = "RS256" if isinstance(private, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(chosen, private, algorithm=algorithm, headers={"kid": kid})

    def document(self, path: str) -> bytes:
        if path in self.documents:
            return self.documents[path]
        if path == "/.well-known/openid-configuration":
            return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/keys"}).encode()
        return json.dumps({"keys": [_public(kid, key) for kid, key in self.keys.items()]}).encode()


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _public(kid: str, key: PrivateKey) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "use": "sig"}


USER = "/v1/recommendations/42"


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return rsa_key()


@pytest.fixture
def issuer(key: PrivateKey) -> Iterator[Issuer]:
    def respond(path: str, *_: object) -> tuple[int, bytes]:
        served.fetched.append(path)
        time.sleep(served.pause_s)
        served.may_answer.wait(60)
        body = served.document(path)
        return 200 if body else 500, body

    with http_server(respond) as url:
        served = Issuer(url, key)
        yield served


@pytest.fixture
def guard(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Guard:
    monkeypatch.setattr(hotplate.serve.access.oidc, "FETCH_S", UNTIL_S)
    return Guard(anonymous=frozenset(), verify_token=TokenVerifier(issuer.url, AUDIENCE).caller)


async def refusal(guard: Guard, token: str, scope: str = READ) -> Problem:
    with pytest.raises(Problem) as caught:
        await guard.admit({"Authorization": f"Bearer {token}"}, scope)
    assert token not in caught.value.detail
    return caught.value


async def status_of(guard: Guard, token: str, scope: str = READ) -> int:
    """Return the status that a service answers a token with."""
    try:
        await guard.admit({"Authorization": f"Bearer {token}"}, scope)
    except Problem as problem:
        return problem.status
    except Exception:  # noqa: BLE001 -- as the dispatcher does
        return 500
    return 200


@pytest.mark.parametrize("claim", ["scp", "scope", "roles"])
async def test_scopes_are_read_as_text_or_list_from_each_claim_name(issuer: Issuer, guard: Guard, claim: str) -> None:
    issuer.keys["curve"] = ec.generate_private_key(ec.SECP256R1())
    for scopes in ("openid read", ["openid", "read"]):
        claims: dict[str, Any] = {"scp": None, "aud": ["other", AUDIENCE], claim: scopes}
        token = issuer.token("curve", **claims)
        assert await status_of(guard, token) == 200
        problem = await refusal(guard, token, ADMIN)
        assert (problem.status, "the scope admin" in problem.detail) == (403, True)
    assert (await refusal(guard, issuer.token(scp=None))).status == 403


async def test_token_with_malformed_claims_is_refused(issuer: Issuer, guard: Guard) -> None:
    claims: list[dict[str, Any]] = [{"exp": 10**400}, {"exp": {}}, {"exp": "soon"}, {"aud": None}, {"iss": None}]
    for odd in (*claims, {"roles": [{"read": 1}]}, {"scp": 1}, {"scp": [[]]}):
        assert await status_of(guard, issuer.token(**odd)) == 401, odd
    deep = base64.urlsafe_b64encode(b"[" * 6000).decode()
    assert await status_of(guard, f"{deep}.e30.AAAA") == 401


async def test_expired_premature_or_foreign_token_is_rejected_with_its_reason(issuer: Issuer, guard: Guard) -> None:
    now = int(time.time())
    for sentence, claims in (
        ("Signature has expired", {"exp": now - 31}),
        ("not yet valid", {"nbf": now + 60}),
        ("Audience doesn't match", {"aud": "api://other"}),
        ("Invalid issuer", {"iss": f"{issuer.url}/"}),
        ("not a valid one", {"exp": None}),
    ):
        problem = await refusal(guard, issuer.token(**claims))
        assert (problem.status, problem.name) == (401, "invalid-token")
        assert sentence in problem.detail
        assert "invalid_token" in problem.headers["WWW-Authenticate"]


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_a_forged_token_is_refused(issuer: Issuer, guard: Guard) -> None:
    good = issuer.token()
    _, payload, signature = good.split(".")
    public = issuer.document("/keys")
    header = part({"alg": "HS256", "kid": "first"})
    by_public_key = hmac.new(public, f"{header}.{payload}".encode(), hashlib.sha256).digest()
    for token in (
        issuer.token(key=rsa_key()),
        f"{part({'alg': 'none', 'kid': 'first'})}.{payload}.",
        f"{part({'alg': 'RS256', 'kid': 'first'})}.{payload}.{signature[:-4]}AAAA",
        f"{good.split('.')[0]}.{part({'scp': 'admin', 'exp': 9e9, 'iss': issuer.url, 'aud': AUDIENCE})}.{signature}",
        f"{header}.{payload}.{base64.urlsafe_b64encode(by_public_key).decode().rstrip('=')}",
        "a.b.c",
        f"{part([])}.{payload}.{signature}",
        f"{part({'alg': 'RS256', 'kid': ['first']})}.{payload}.{signature}",
        f"{part({'alg': 'RS256'})}.{payload}.{signature}",
        f"{part({'alg': 'RS256', 'kid': 'first', 'crit': ['x']})}.{payload}.{signature}",
    ):
        assert (await refusal(guard, token)).status == 401
    assert (await refusal(guard, "no-token-at-all")).name == "unknown-key"


async def test_issuer_keys_are_fetched_once_for_many_concurrent_tokens(issuer: Issuer, guard: Guard) -> None:
    issuer.pause_s = 0.2
    assert await asyncio.gather(*(status_of(guard, issuer.token(sub=str(n))) for n in range(20))) == [200] * 20
    stranger = rsa_key()
    for n in range(20):
        assert "does not publish" in (await refusal(guard, issuer.token(f"kid-{n}", key=stranger))).detail
    assert issuer.fetched == ["/.well-known/openid-configuration", "/keys"]


async def test_new_issuer_key_is_used_and_withdrawn_key_is_dropped(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = issuer.token()
    assert await status_of(guard, old) == 200
    issuer.keys = {"second": rsa_key()}
    assert await status_of(guard, old) == 200
    assert (await refusal(guard, issuer.token("second"))).status == 401  # the issuer was asked just now
    monkeypatch.setattr(hotplate.serve.access.oidc, "REFRESH_S", 0.0)
    assert await status_of(guard, issuer.token("second")) == 200
    assert "does not publish" in (await refusal(guard, old)).detail


async def test_replacing_a_key_under_its_id_invalidates_cached_tokens(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kid,) = issuer.keys
    old = issuer.token()
    assert await status_of(guard, old) == 200
    issuer.keys = {kid: rsa_key(), "second": rsa_key()}
    monkeypatch.setattr(hotplate.serve.access.oidc, "REFRESH_S", 0.0)
    assert await status_of(guard, issuer.token("second")) == 200
    assert await status_of(guard, old) == 401


async def test_withdrawn_key_is_dropped_although_only_cached_tokens_come(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issuer.token()
    assert await status_of(guard, token) == 200
    issuer.keys = {"second": rsa_key()}
    monkeypatch.setattr(hotplate.serve.access.oidc, "FRESH_S", 0.0)
    monkeypatch.setattr(hotplate.serve.access.oidc, "REFRESH_S", 0.0)
    async with asyncio.timeout(UNTIL_S):
        while await status_of(guard, token) == 200:
            await asyncio.sleep(0.01)
    assert "does not publish" in (await refusal(guard, token)).detail


@pytest.mark.parametrize("about", [{"use": "enc"}, {"alg": "RS512"}])
async def test_key_for_another_use_verifies_no_token(issuer: Issuer, guard: Guard, about: dict[str, str]) -> None:
    ((kid, key),) = issuer.keys.items()
    other = {"keys": [_public(kid, key) | about, _public("other", rsa_key())]}
    issuer.documents["/keys"] = json.dumps(other).encode()
    assert await status_of(guard, issuer.token()) == 401


async def test_failing_issuer_gives_503_only_before_keys_were_fetched(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hotplate.serve.access.oidc, "REFRESH_S", 0.0)
    monkeypatch.setattr(hotplate.serve.access.oidc, "RETRY_S", 0.0)
    good = issuer.document("/keys")
    path = "/.well-known/openid-configuration"
    for wrong in (
        {path: b""},
        {path: b"[]"},
        {path: b'{"issuer": "https://else.where", "jwks_uri": "https://else.where/keys"}'},
        {path: json.dumps({"issuer": issuer.url, "jwks_uri": "http://192.0.2.1/keys"}).encode()},
        {path: json.dumps({"issuer": issuer.url, "jwks_uri": "file:///etc/passwd"}).encode()},
        {"/keys": b'{"keys": []}'},
        {"/keys": b'{"keys": [{"kty": "RSA", "alg": ["x"], "kid": "1", "n": 1, "e": []}]}'},
        {"/keys": b" " * (2 << 20)},
    ):
        issuer.documents = wrong
        problem = await refusal(guard, issuer.token())
        assert (problem.status, problem.name) == (503, "issuer-unavailable")
    issuer.documents = {"/keys": good}
    assert await status_of(guard, issuer.token()) == 200
    issuer.documents = {path: b""}
    monkeypatch.setattr(hotplate.serve.access.oidc, "FRESH_S", 0.0)
    caplog.clear()
    issuer.fetched.clear()
    async with asyncio.timeout(60):
        # A request begins a fetch only if none is in progress; the third one begins after two have failed.
        while len(issuer.fetched) < 3:
            assert await status_of(guard, issuer.token(sub=str(time.monotonic_ns()))) == 200
            await asyncio.sleep(0.01)
    assert len(caplog.records) == 1


async def test_no_request_waits_for_new_keys_while_stale_ones_are_known(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await status_of(guard, issuer.token()) == 200
    monkeypatch.setattr(hotplate.serve.access.oidc, "FRESH_S", 0.0)
    monkeypatch.setattr(hotplate.serve.access.oidc, "REFRESH_S", 0.0)
    issuer.fetched.clear()
    issuer.may_answer.clear()  # the issuer accepts connections and does not answer
    assert await status_of(guard, issuer.token(sub="another")) == 200
    issuer.may_answer.set()
    await until_true(lambda: "/keys" in issuer.fetched)


async def test_requests_share_one_fetch_from_a_hanging_issuer(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotplate.serve.access.oidc, "FETCH_S", 1.0)
    issuer.may_answer.clear()
    problems = await asyncio.gather(*(refusal(guard, issuer.token(sub=str(n))) for n in range(20)))
    issuer.may_answer.set()
    assert {(problem.status, problem.headers["Retry-After"]) for problem in problems} == {(503, "5")}
    assert len(issuer.fetched) <= 1  # none if a busy machine did not even connect in time


async def test_fetch_survives_cancellation_of_the_request_that_started_it(issuer: Issuer, guard: Guard) -> None:
    issuer.pause_s = 0.1
    first = asyncio.create_task(status_of(guard, issuer.token()))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, first.cancel)
    assert await asyncio.gather(*(status_of(guard, issuer.token(sub=str(n))) for n in range(3))) == [200] * 3


async def test_token_is_refused_with_503_if_the_fetch_of_keys_is_cancelled(issuer: Issuer, guard: Guard) -> None:
    issuer.may_answer.clear()
    tasks = asyncio.all_tasks()
    request = asyncio.create_task(refusal(guard, issuer.token()))
    await asyncio.sleep(0)
    (fetch,) = asyncio.all_tasks() - tasks - {request}
    fetch.cancel()
    problem = await request
    issuer.may_answer.set()
    assert (problem.status, problem.name) == (503, "issuer-unavailable")


async def test_token_results_are_cached_until_expiry_with_a_bounded_size(
    issuer: Issuer, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotplate.serve.access.oidc, "MAX_VERIFIED", 3)
    verified = list[str]()
    decode = jwt.decode

    def counted(token: str, *arguments: Any, **named: Any) -> dict[str, Any]:  # noqa: ANN401 -- passed on
        verified.append(token)
        return decode(token, *arguments, **named)

    monkeypatch.setattr(jwt, "decode", counted)
    tokens = [issuer.token(sub=str(n)) for n in range(4)]
    for token in (*tokens, tokens[3], tokens[0]):
        assert await status_of(guard, token) == 200
    assert verified == [*tokens, tokens[0]], "the last three are remembered"
    now = time.time()
    late = issuer.token(exp=int(now) - 5)  # within the leeway
    assert await status_of(guard, late) == 200
    monkeypatch.setattr(hotplate.serve.access.oidc, "LEEWAY_S", 0)
    assert await status_of(guard, late) == 200
    monkeypatch.setattr(time, "time", lambda: now + 60)
    assert (await refusal(guard, late)).status == 401


def test_service_accepts_both_keys_and_tokens(issuer: Issuer, tmp_path: Path) -> None:
    store = tmp_path / "store"
    keys = tmp_path / "keys.json"
    published(store, {"user:42": a_list("a", "b")})
    key = create(keys, "web", ["read"]).key
    tokens = ("--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE)
    good = issuer.token()
    bad = issuer.token(aud="api://other")
    with running(store, "--keys", str(keys), "--admin-host", "0.0.0.0", *tokens) as service:
        assert service.get(USER).status == 401
        assert service.get(USER, X_API_Key=key).status == 200
        assert service.get(USER, Authorization=f"Bearer {good}").status == 200
        assert service.get(USER, Authorization=f"Bearer {bad}").json["type"] == "urn:hotplate:problem:invalid-token"
        assert service.admin("/metrics", Authorization=f"Bearer {good}").status == 403
        log = service.log.read_text()
    assert good not in log
    assert bad not in log


def test_untrusted_issuer_prevents_the_start() -> None:
    for url in ("http://example.com", "example.com", "https://", "http://127.0.0.1.x"):
        with pytest.raises(ServiceMisused, match="must be an https:// URL"):
            TokenVerifier(url, AUDIENCE)
    with pytest.raises(ServiceMisused, match="give both --oidc-issuer"):
        verifier_of("https://example.com", None)
