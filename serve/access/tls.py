"""TLS of the public listener; a renewed certificate is reloaded."""

import os
import re
import ssl
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.watched import WatchedFiles

HANDSHAKE_S = 10.0
# All labels of PEM certificates that OpenSSL reads.
_PEM = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
# DER tags (X.690): version of a certificate, and a time with a two-digit year.
_VERSION = 0xA0
_UTC_TIME = 0x17


class Certificate:
    """A certificate chain and its key. Created before the workers, which share session tickets."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load both files; raises ServiceMisused, which quotes neither."""
        self._certificate = certificate
        self._key = key
        self.context: ssl.SSLContext
        """TLS 1.2 or later, with the latest valid certificate."""
        self.expires_at = 0.0
        """Earliest in the chain, as Unix time."""
        self.watched = WatchedFiles([certificate, key], self._parse)

    def _parse(self, contents: Sequence[bytes]) -> Callable[[], None]:
        certificate, key = contents
        pem = key + b"\n" + certificate  # the key first: it must not be taken from a certificate's file
        # The old context would keep its certificates of other key types.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            _load(context, pem)
            expires_at = expiry(pem)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "it cannot be parsed"
            raise ServiceMisused(
                f"{self._certificate} and {self._key} are not a certificate and its key, in PEM without a password: "
                f"{reason}"
            ) from None

        def use() -> None:
            self.context, self.expires_at = context, expires_at

        return use


def certificate_of(settings: ServiceSettings) -> Certificate | None:
    """Load the configured certificate; None for plain HTTP."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ServiceMisused("TLS takes a certificate and its key: give both --tls-cert FILE and --tls-key FILE")
    return Certificate(settings.tls_cert, settings.tls_key)


def expiry(pem: bytes) -> float:
    """Return the earliest expiry (Unix time) of the certificates in a PEM file, parsed as in RFC 5280.

    The ssl module shows only certificates of peers.
    """
    return min(_not_after(b64decode(content)) for _, content in _PEM.findall(pem))


def _not_after(der: bytes) -> float:
    _, certificate = next(_elements(der))
    _, signed = next(_elements(certificate))
    _, _, _, validity = [content for tag, content in _elements(signed) if tag != _VERSION][:4]
    _, (tag, time) = _elements(validity)
    text = ("20" if tag == _UTC_TIME else "") + time.decode()
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    while der:
        tag, length, start = der[0], der[1], 2
        if length >= 0x80:  # long form: the low bits count the length bytes that follow
            start += length - 0x80
            length = int.from_bytes(der[2:start])
        yield tag, der[start : start + length]
        der = der[start + length :]


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and its chain through a memfd, because OpenSSL reads only files."""
    descriptor = os.memfd_create("hotplate-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
