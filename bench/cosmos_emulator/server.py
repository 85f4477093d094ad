"""The emulator as a server; pages for faults and metrics need no key."""

import asyncio
import ipaddress
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.cosmos_emulator.messages import (
    HttpConnection,
    HttpError,
    HttpHandler,
    HttpResponse,
    Request,
    parse_json,
)
from hotplate.bench.cosmos_emulator.resources import CONSISTENCIES, EmulatedAccount
from hotplate.bench.cosmos_emulator.service import Authenticator, Service
from hotplate.bench.errors import BenchMisused
from hotplate.stores.cosmos.charges import OURS, load
from hotplate.stores.cosmos.url import EMULATOR_KEY

REGIONS = ("Emulated West", "Emulated East")
PAGES = "/__emulation/"
PREFIX = "hotplate_cosmos_emulator_"
CERTIFICATE_LIFE = timedelta(days=30)
# Until connections that were just accepted are known: with TLS, once their handshake is done.
ACCEPTING_S = 0.01
HANDSHAKE_S = 0.1
WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 -- compared with, not bound to


@dataclass(frozen=True, slots=True)
class EmulatorSettings:
    """Settings of one emulator."""

    host: str = "127.0.0.1"
    port: int = 8081
    second_port: int | None = None  # of a second region
    key: str = field(default=EMULATOR_KEY, repr=False)
    consistency: str = "Session"
    charges: Path | None = None  # coefficients; None for ours
    tls: bool = False
    certificate: Path | None = None  # where the generated certificate is written
    latency: str | None = None  # as in `p50=4ms,p99=10ms`


@dataclass(frozen=True, slots=True)
class RunningEmulator:
    """A listening emulator."""

    service: Service
    scheme: str
    host: str
    ports: tuple[int, ...]

    @property
    def endpoint(self) -> str:
        """Return the URL of the write region."""
        host = "127.0.0.1" if self.host in WILDCARDS else self.host
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.ports[0]}/"


@asynccontextmanager
async def running(
    settings: EmulatorSettings,
    extend: Callable[[Service, HttpHandler], HttpHandler] = lambda _, handler: handler,
) -> AsyncIterator[RunningEmulator]:
    """Run an emulator of Cosmos DB until the block ends, with a listening port for each region of the account.

    *extend* gets the service and its handler of requests, and returns the handler to use. At the end, all connections
    are reset, including those that are just being accepted. Raises BenchMisused for invalid settings.
    """
    context = _tls_context(settings)
    service = _service(settings)
    handler = extend(service, partial(_answer, service))
    scheme = "http" if context is None else "https"
    connections = set[HttpConnection]()

    loop = asyncio.get_running_loop()
    listeners = list[asyncio.Server]()
    try:
        for region, (_, wanted_port) in enumerate(service.account.regions):
            connect = partial(HttpConnection, handler, connections, region, scheme)
            listeners.append(await loop.create_server(connect, settings.host, wanted_port, ssl=context))

        # The system has chosen the ports if 0 was wanted.
        ports = tuple(listener.sockets[0].getsockname()[1] for listener in listeners)
        service.account.regions = tuple(zip(REGIONS, ports, strict=False))
        yield RunningEmulator(service, scheme, settings.host, ports)
    finally:
        # An accepted connection gets a transport in the next turn of the loop, but none once its listener is closed.
        for listener in listeners:
            for accepting in listener.sockets:
                loop.remove_reader(accepting)
        try:
            await asyncio.sleep(0)
        finally:
            for listener in listeners:
                listener.close()

        # Connections that were just accepted get into `connections` meanwhile.
        await asyncio.sleep(ACCEPTING_S if context is None else HANDSHAKE_S)
        for connection in list(connections):
            connection.reset()


def _service(settings: EmulatorSettings) -> Service:
    """Return a service with an empty account of one region, or of two with a second port.

    Raises BenchMisused for invalid settings.
    """
    if settings.consistency not in CONSISTENCIES:
        raise BenchMisused(f"no such consistency: {settings.consistency}; there are {', '.join(CONSISTENCIES)}")

    ports = [settings.port] if settings.second_port is None else [settings.port, settings.second_port]
    regions = tuple(zip(REGIONS, ports, strict=False))
    account = EmulatedAccount(load(settings.charges or OURS), regions, settings.consistency)
    latency = None if settings.latency is None else parse_latency(settings.latency)
    return Service(account, Authenticator(settings.key), latency=latency)


def _answer(service: Service, request: Request) -> HttpResponse:
    """Answer a request: for a page of the emulator (GET metrics, PUT faults), or for a resource of Cosmos DB.

    The body of faults is JSON, and replaces the faults that the emulator injects.
    """
    if not request.path.startswith(PAGES):
        return service.answer(request)
    match request.method, request.path.removeprefix(PAGES):
        case "GET", "metrics":
            return HttpResponse(200, generate_latest(_Metrics(service)), content_type=CONTENT_TYPE_LATEST)
        case "PUT", "faults":
            try:
                service.faults.replace(parse_json(request.body), service.account.clock())
            except HttpError as error:
                return error.response()
            return HttpResponse(204)
    return HttpError(404, f"there are GET {PAGES}metrics and PUT {PAGES}faults").response()


class _Metrics(Collector):
    """Requests and request units by operation and status."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        counters: dict[str, Mapping[tuple[str, int], float]] = {
            "requests": self._service.requests,
            "request_units": self._service.charges_ru,
        }
        for name, counted in counters.items():
            total = CounterMetricFamily(PREFIX + name, "By operation and status.", labels=("operation", "status"))
            for (operation, status), value in counted.items():
                total.add_metric((operation, str(status)), value)
            yield total


async def serve(settings: EmulatorSettings, on_ready: Callable[[RunningEmulator], None]) -> None:
    """Run an emulator until SIGINT or SIGTERM; *on_ready* is called once it accepts connections."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    stops = (signal.SIGINT, signal.SIGTERM)
    for number in stops:
        loop.add_signal_handler(number, stopped.set)
    try:
        async with running(settings) as emulator:
            on_ready(emulator)
            await stopped.wait()
    finally:
        for number in stops:  # a uvloop that is closed leaves them, and Ctrl-C does nothing then
            loop.remove_signal_handler(number)


def _tls_context(settings: EmulatorSettings) -> ssl.SSLContext | None:
    """Return a TLS context with a new self-signed certificate; None if TLS is not wanted.

    If `settings.certificate` is a path, the certificate is written there, for clients to trust. Raises BenchMisused for
    this path without TLS.
    """
    if not settings.tls:
        if settings.certificate is not None:
            raise BenchMisused("--certificate needs --tls")
        return None

    certificate, key = make_certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # a context loads files only
        chain = Path(folder) / "chain.pem"
        chain.touch(mode=0o600)
        chain.write_bytes(key + certificate)
        context.load_cert_chain(chain)

    if settings.certificate is not None:
        settings.certificate.write_bytes(certificate)
    return context


def make_certificate() -> tuple[bytes, bytes]:
    """Return a self-signed certificate for localhost, 127.0.0.1 and ::1, and its private key, both as PEM."""
    from cryptography import x509  # noqa: PLC0415 -- an extra: only TLS needs it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 -- as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 -- as above

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hotplate cosmos-emulator")])
    addresses = (x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1"))
    alternatives = x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])

    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + CERTIFICATE_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )

    pem = serialization.Encoding.PEM
    private_key = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private_key
