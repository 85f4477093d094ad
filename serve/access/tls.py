"""TLS for the port that clients use, with a certificate that is renewed under the running service."""

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

# How long a client may take over its handshake.
HANDSHAKE_S = 10.0
# A certificate in PEM, by each of the labels that OpenSSL reads. After a trusted one stands what it is trusted for.
_PEM = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
# Tags of DER (X.690): a certificate's version, which may be left out, and a time with a year of two digits.
_VERSION = 0xA0
_UTC_TIME = 0x17


class Certificate:
    """A certificate chain and its key; made before the workers are forked, so session tickets work with all of them."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load both; raises ServiceMisused, whose text quotes neither."""
        self._certificate = certificate
        self._key = key
        self.context: ssl.SSLContext
        """For new connections: TLS 1.2 and later, with the certificate that was loaded last."""
        self.expires_at = 0.0
        """When the first certificate of the chain that is in use expires, as Unix time."""
        self.watched = WatchedFiles([certificate, key], self._parse)

    def _parse(self, contents: Sequence[bytes]) -> Callable[[], None]:
        """Make a new context: one that is loaded into twice keeps certificates of other key types than the newest."""
        certificate, key = contents
        pem = key + b"\n" + certificate  # a key's file that holds a certificate, too, does not lend its key to another
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
    """Load the certificate that the settings name; None if the service speaks plain HTTP."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ServiceMisused("TLS takes a certificate and its key: give both --tls-cert FILE and --tls-key FILE")
    return Certificate(settings.tls_cert, settings.tls_key)


def expiry(pem: bytes) -> float:
    """Return the Unix time at which the first of the certificates in a PEM file expires; it has one at least.

    They are read as RFC 5280 has them, because the standard library shows only the dates of a peer's certificate.
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
    """Yield the tag and the content of each element of a sequence in DER."""
    while der:
        tag, length, start = der[0], der[1], 2
        if length >= 0x80:  # it says in how many bytes the length follows
            start += length - 0x80
            length = int.from_bytes(der[2:start])
        yield tag, der[start : start + length]
        der = der[start + length :]


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and its chain from memory, by a file without a name, for OpenSSL reads no other."""
    descriptor = os.memfd_create("hotplate-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
