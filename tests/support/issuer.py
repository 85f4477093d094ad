"""An OpenID Connect issuer on loopback: its documents over HTTP, its keys, and tokens of every kind, good and bad."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

AUDIENCE = "api://hotplate"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Issuer:
    """Signs tokens, and publishes the keys for that; what it publishes can be changed and broken."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, PrivateKey] = {"first": rsa_key()}
        self.documents: dict[str, bytes] = {}
        """What is answered instead of the right document, by path."""
        self.fetched = list[str]()
        self.pause_s = 0.0

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


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    """Run an issuer on any free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.fetched.append(self.path)
            time.sleep(issuer.pause_s)
            body = issuer.document(self.path)
            self.send_response(200 if body else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the library's name for it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
