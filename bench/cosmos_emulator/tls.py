"""A certificate for loopback, made at each start and trusted by nobody until a client is told to."""

import ipaddress
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.cosmos_emulator.errors import EmulatorMisused
from bench.cosmos_emulator.settings import Settings

LIFE = timedelta(days=30)


def context_for(settings: Settings) -> ssl.SSLContext | None:
    """Make the TLS settings of a server with a new key and certificate; None where TLS was not asked for."""
    if not settings.tls:
        if settings.certificate is not None:
            raise EmulatorMisused("--certificate needs --tls")
        return None
    certificate, key = _certificate(settings.host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as made:
        chain = Path(made) / "chain.pem"
        chain.touch(mode=0o600)
        chain.write_bytes(key + certificate)
        context.load_cert_chain(chain)
    if settings.certificate is not None:
        settings.certificate.write_bytes(certificate)
    return context


def _certificate(host: str) -> tuple[bytes, bytes]:
    """Return a self-signed certificate for loopback and *host*, and its key, both as PEM."""
    try:
        from cryptography import x509  # noqa: PLC0415 -- only TLS needs it
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 -- as above
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 -- as above
    except ModuleNotFoundError:
        raise EmulatorMisused("--tls needs cryptography; install it with: pip install 'hotplate[cosmos]'") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hotplate cosmos-emulator")])
    alternatives: list[x509.GeneralName] = [x509.DNSName("localhost")]
    addresses = {"127.0.0.1", "::1"}
    try:
        addresses.add(str(ipaddress.ip_address(host)))
    except ValueError:
        alternatives.append(x509.DNSName(host))
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(addresses)]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private
