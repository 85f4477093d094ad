"""TLS of the public listener; a renewed certificate is reloaded."""

import os
import re
import ssl
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.watched import WatchedFiles

HANDSHAKE_S = 10.0
# All labels of PEM certificates that OpenSSL reads.
_PEM = re.compile(rb"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
# A validity in DER (RFC 5280): a sequence of two times, with two digits of the year until 2049.
_TIME = rb"(?:\x17\x0d|\x18\x0f)"
_VALIDITY = re.compile(rb"\x30[\x1e\x20\x22]" + _TIME + rb"\d{12,14}Z" + _TIME + rb"(?P<end>\d{12,14}Z)")


class Certificate:
    """A certificate chain and its key. Created before the workers, which share session tickets."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Load both files; raises ServiceMisused, which quotes neither."""
        self._names = f"{certificate} and {key}"
        self.context: ssl.SSLContext
        """TLS 1.2 or later, with the latest valid certificate."""
        self.expires_at = 0.0
        """Earliest in the chain, as Unix time."""
        self.watched = WatchedFiles([certificate, key], self._load)

    def _load(self, contents: Sequence[bytes]) -> None:
        """Use a new certificate and its key for connections from now on; raises ServiceMisused if they are invalid.

        *contents* are the contents of two files in PEM: the certificate, perhaps with its chain, then the key.
        """
        certificate, key = contents
        pem = key + b"\n" + certificate  # the first key counts: one in the certificate's file must not

        # Not loaded into the present context, which would keep its certificates of other key types.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])

        try:
            _load_pem(context, pem)
            expires_at = expiry(pem)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "it cannot be parsed"
            raise ServiceMisused(
                f"{self._names} are not a certificate and its key, in PEM without a password: {reason}"
            ) from None

        self.context = context
        self.expires_at = expires_at


def certificate_of(settings: ServiceSettings) -> Certificate | None:
    """Load the configured certificate; None for plain HTTP."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise ServiceMisused("TLS takes a certificate and its key: give both --tls-cert FILE and --tls-key FILE")
    return Certificate(settings.tls_cert, settings.tls_key)


def expiry(pem: bytes) -> float:
    """Return the earliest expiry (Unix time) in a PEM file, which the ssl module does not show; raises ValueError."""
    periods = [_VALIDITY.search(b64decode(content)) for _, content in _PEM.findall(pem)]
    return min(_time_of(period["end"].decode()) for period in periods if period)


def _time_of(text: str) -> float:
    """Return the Unix time of a UTCTime (two digits of the year) or GeneralizedTime (four) of ASN.1."""
    year = "%y" if len(text) == len("YYMMDDhhmmssZ") else "%Y"
    return datetime.strptime(text, f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a key and its chain through a memfd, because OpenSSL reads only files."""
    descriptor = os.memfd_create("hotplate-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)
