"""TLS on the service's port, by a real client, while the certificate is renewed."""

import http.client
import shutil
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hotplate.serve.access.tls import Certificate, expiry
from hotplate.serve.errors import ServiceMisused
from tests.support.limited_service import counted, samples
from tests.support.redis_server import certify
from tests.support.service import UNVERIFIED, Service, running, status_of, until

USER = "/v1/recommendations/42"


def certified(folder: Path) -> Path:
    folder.mkdir()
    certify(folder)
    return folder


def options(folder: Path) -> tuple[str, ...]:
    return "--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key")


def get(service: Service, authority: Path | None = None) -> tuple[int, bytes | None]:
    """Request a list over a new connection; return the status and the certificate that was shown."""
    context = UNVERIFIED if authority is None else ssl.create_default_context(cafile=authority)
    connection = http.client.HTTPSConnection("127.0.0.1", service.port, timeout=60, context=context)
    try:
        connection.request("GET", USER)
        shown = connection.sock.getpeercert(binary_form=True)
        return connection.getresponse().status, shown
    finally:
        connection.close()


def der(folder: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert((folder / "server.pem").read_text())


def expires_at(certificate: bytes) -> float:
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()


def expiries(service: Service) -> list[float]:
    """Return until when the certificate of each worker is valid."""
    return [sample.value for sample in samples(service, "hotplate_certificate_expiry_timestamp_seconds")]


def until_counted(service: Service, unusable: int, certificate: bytes) -> None:
    """Wait until the metrics say how many files are unusable, and until when this certificate is valid."""
    until(lambda: counted(service, "hotplate_worker_unusable_files") == unusable)
    until(lambda: expiries(service) == [expires_at(certificate)])


def signed(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, year: int) -> bytes:
    """Return a certificate as PEM."""
    certificate = (
        x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(1999, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(year, 2, 28, 23, 59, 58, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def test_chain_expires_with_its_earliest_certificate() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for years in ((2030, 2049), (2049, 2030), (2050, 2120)):
        # A key's file may have parameters in front.
        chain = b"-----BEGIN EC PARAMETERS-----\n-----END EC PARAMETERS-----\n"
        chain += b"".join(signed(key, year) for year in years)
        assert expiry(chain) == datetime(min(years), 2, 28, 23, 59, 58, tzinfo=UTC).timestamp()


def test_clients_trusting_the_ca_are_served_over_tls_and_plain_http_fails(folder: Path, tmp_path: Path) -> None:
    pair = certified(tmp_path / "pair")
    with running(folder, *options(pair)) as service:
        assert " on https://127.0.0.1:" in service.log.read_text()
        assert get(service, pair / "ca.pem") == (200, der(pair))
        assert status_of(service.port, USER) == 0
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.verify_mode = ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        connection = http.client.HTTPSConnection("127.0.0.1", service.port, timeout=60, context=old)
        with pytest.raises(ssl.SSLError):
            connection.connect()
        assert service.stop() == 0


@pytest.mark.soak
def test_renewed_certificate_is_used_for_new_clients_without_failed_requests(folder: Path, tmp_path: Path) -> None:
    first = certified(tmp_path / "first")
    second = certified(tmp_path / "second")
    while expires_at(der(second)) == expires_at(der(first)):  # in whole seconds
        certify(second)
    (tmp_path / "live").symlink_to(first)
    stop = threading.Event()
    statuses = set[int]()
    errors = list[Exception]()

    def request_all(service: Service) -> None:
        while not stop.is_set():
            try:
                statuses.add(get(service)[0])
            except OSError as error:
                errors.append(error)

    with running(folder, *options(tmp_path / "live"), "--workers", "2") as service:
        kept = http.client.HTTPSConnection(
            "127.0.0.1", service.port, timeout=60, context=ssl.create_default_context(cafile=first / "ca.pem")
        )
        kept.connect()
        threads = [threading.Thread(target=request_all, args=(service,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        (tmp_path / "new").symlink_to(second)
        (tmp_path / "new").rename(tmp_path / "live")
        until(lambda: expiries(service) == [expires_at(der(second))] * 2, "a worker has not taken it up")
        stop.set()
        for thread in threads:
            thread.join()
        kept.request("GET", USER)  # over the connection that was opened before
        assert kept.getresponse().status == 200
        kept.close()
        assert get(service, second / "ca.pem") == (200, der(second))
        with pytest.raises(ssl.SSLCertVerificationError):
            get(service, first / "ca.pem")
    assert (statuses, errors) == ({200}, [])


def test_broken_certificate_keeps_the_previous_one_and_is_reported(folder: Path, tmp_path: Path) -> None:
    pair = certified(tmp_path / "pair")
    other = certified(tmp_path / "other")
    first = der(pair)
    authority = Path(shutil.copy(pair / "ca.pem", tmp_path / "ca.pem"))
    with running(folder, *options(pair)) as service:
        shutil.copy(other / "server.pem", pair / "server.pem")
        until(lambda: "are not a certificate and its key" in service.log.read_text())
        assert get(service, authority) == (200, first)
        until_counted(service, 1, first)
        shutil.copy(other / "server.key", pair / "server.key")
        until(lambda: get(service)[1] == der(other))
        until_counted(service, 0, der(other))
        log = service.log.read_text()
        assert log.count("are not a certificate and its key") == 1
        assert "PRIVATE KEY" not in log


def self_signed(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "server.pem").write_bytes(signed(key, 2049))
    pem = serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption())
    )
    return folder


def shown_by(context: ssl.SSLContext, *, only_rsa: bool) -> bytes | None:
    """Return the certificate that a client is shown; None if they have no cipher in common."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    if only_rsa:
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers("aRSA")
    sent = ssl.MemoryBIO()
    answered = ssl.MemoryBIO()
    ends = client.wrap_bio(answered, sent), context.wrap_bio(sent, answered, server_side=True)
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return None
    return ends[0].getpeercert(binary_form=True)


@pytest.mark.parametrize("renewed", ["ec", "rsa"])
def test_a_renewed_certificate_of_another_key_type_replaces_the_old_one(tmp_path: Path, renewed: str) -> None:
    keys: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(public_exponent=65_537, key_size=2048),
    }
    pair = self_signed(tmp_path / "pair", keys["rsa" if renewed == "ec" else "ec"])
    certificate = Certificate(pair / "server.pem", pair / "server.key")
    assert shown_by(certificate.context, only_rsa=False) == der(pair)
    self_signed(pair, keys[renewed])
    for _ in range(2):
        certificate.watched.poll()
    assert shown_by(certificate.context, only_rsa=False) == der(pair)
    assert shown_by(certificate.context, only_rsa=True) == (None if renewed == "ec" else der(pair))


def test_invalid_certificate_or_key_prevents_the_start(tmp_path: Path) -> None:
    pair = certified(tmp_path / "pair")
    other = certified(tmp_path / "other")
    with pytest.raises(ServiceMisused, match=r"server\.key cannot be read: No such file"):
        Certificate(pair / "server.pem", tmp_path / "server.key")
    (tmp_path / "empty").touch()
    for certificate, key in (
        (pair / "server.pem", other / "server.key"),
        (tmp_path / "empty", tmp_path / "empty"),
    ):
        with pytest.raises(ServiceMisused, match="are not a certificate and its key") as caught:
            Certificate(certificate, key)
        assert "BEGIN" not in str(caught.value)
