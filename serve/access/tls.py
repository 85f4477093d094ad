"""TLS for the port that clients use, with a certificate that is renewed under the running service."""

import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

from serve.errors import ServiceMisused
from serve.settings import Settings
from serve.watched import WatchedFiles

# How long a client may take over its handshake.
HANDSHAKE_S = 10.0


class Certificate:
    """A certificate chain and its key; made before the workers, which so share what resumes sessions."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load both; raises ServiceMisused, whose text quotes neither."""
        self._certificate = certificate
        self._key = key
        self.context = _new_context()
        """TLS 1.2 and later; new connections get the certificate that was loaded last."""
        self.watched = WatchedFiles([certificate, key], self._load)

    def _load(self) -> Callable[[], None]:
        """Read the files, and try them; both are read once, so that what was tried is what is used.

        A context must not change while a handshake begins with it: that is put off to the event loop's own thread.
        """
        try:
            # The key's file comes first: one that holds a certificate as well must not lend its key to the other's.
            pem = self._key.read_bytes() + b"\n" + self._certificate.read_bytes()
        except OSError as error:
            raise ServiceMisused(f"the certificate cannot be read: {error.filename}: {error.strerror}") from error
        try:
            _use(_new_context(), pem)  # one that fails half-way leaves a context without a key
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "it cannot be parsed"
            raise ServiceMisused(
                f"{self._certificate} and {self._key} are not a certificate and its key, in PEM without a password: "
                f"{reason}"
            ) from None
        return partial(_use, self.context, pem)


def certificate_of(settings: Settings) -> Certificate | None:
    """Load the certificate that the settings name; None where the service speaks plain HTTP."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ServiceMisused("TLS takes a certificate and its key: give both --tls-cert FILE and --tls-key FILE")
    return Certificate(settings.tls_cert, settings.tls_key)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _use(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and its chain from memory, by a file without a name, for OpenSSL reads no other."""
    descriptor = os.memfd_create("hotplate-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
