"""URLs of Cosmos DB databases: `cosmos://`, and `cosmos+http(s)://` for emulators.

Sources: https://learn.microsoft.com/azure/cosmos-db/concepts-limits (values, minimum),
https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices (partitions).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, inf
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import TracedCall
from hotplate.stores.urls import CA, LOOPBACK, SecretFile, certificate, parameters, redacted, secret, secret_file, split

PARTITION_RU = 10_000
INITIAL_PARTITION_RU = 6_000
MANUAL_MIN = 400
MANUAL_STEP = 100
AUTOSCALE_MIN = 1_000
AUTOSCALE_STEP = 1_000
MAX_RU = 1_000_000
# Throughput and capacity of a serverless container with one physical partition:
# https://learn.microsoft.com/azure/cosmos-db/serverless-performance
SERVERLESS_RU = 5_000
SERVERLESS_BYTES = 10**12
# Share of a live release's throughput for other work than lookups.
SHARED_SHARE = 0.5

KEY = "HOTPLATE_COSMOS_KEY"
# Microsoft's published emulator key.
EMULATOR_KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="
HOST = ".documents.azure.com"
CONSISTENCIES = {
    "eventual": "Eventual", "prefix": "ConsistentPrefix", "session": "Session", "bounded": "BoundedStaleness",
    "strong": "Strong",
}  # fmt: skip
OPTIONS = {
    "ru": (
        r"([4-9]|[1-9][0-9]{1,3})00|1000000|autoscale-([1-9][0-9]{0,2}000|1000000)|serverless",
        "400 and more in steps of 100, autoscale-1000 and more in steps of 1000, or serverless",
    ),
    "max_ru": (r"[1-9][0-9]{0,5}|1000000", f"a number of RU/s between 1 and {MAX_RU:,}"),
    "consistency": ("|".join(CONSISTENCIES), ", ".join(CONSISTENCIES)),
    "region": (r".+", "the name of a region, as the account lists it"),
    "failover": (r"no", "no, to read one region only"),
    "ca": CA,
    "subscription": (r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", "the id that `az account show` prints"),
    "resource_group": (r"[\w().-]{1,90}", "a name of 1 to 90 letters, digits or any of _ - . ( )"),
}


@dataclass(frozen=True, slots=True)
class Throughput:
    """Throughput in RU/s: manual, or the maximum of autoscale."""

    ru: int
    autoscale: bool = False

    @property
    def initial_partitions(self) -> int:
        """Physical partitions of a new container."""
        return ceil(self.ru / (PARTITION_RU if self.autoscale else INITIAL_PARTITION_RU))

    def rounded_up(self, ru: int) -> "Throughput":
        """Return *ru*, rounded up to a step."""
        step = AUTOSCALE_STEP if self.autoscale else MANUAL_STEP
        return Throughput(ceil(ru / step) * step, self.autoscale)


class Offer(NamedTuple):
    """Throughput of a container."""

    throughput: Throughput
    minimum_ru: int
    pending: bool
    """A change is in progress."""

    @classmethod
    def of(cls, ru: int, *, autoscale: bool, minimum: int | str | None, pending: str | None) -> "Offer":
        """Return what the service says of a container; without a minimum, that of an empty container is assumed."""
        throughput = Throughput(ru, autoscale)
        minimum = int(minimum or minimum_ru(ru, 0, autoscale=autoscale))
        return cls(throughput, minimum, pending=str(pending).lower() == "true")

    def serving(self, wanted: Throughput) -> Throughput:
        """Return the throughput to serve with: at least the minimum, and manual or autoscale as it is."""
        return self.throughput.rounded_up(max(wanted.ru, self.minimum_ru))


def minimum_ru(highest_ru: int, stored_bytes: int, *, autoscale: bool) -> int:
    """Return the minimum throughput of a container, by the highest that it ever had, and its size."""
    if autoscale:
        needed = max(AUTOSCALE_MIN, highest_ru / 10, stored_bytes / 1000**3 * 10)
        return ceil(needed / AUTOSCALE_STEP) * AUTOSCALE_STEP
    return ceil(max(MANUAL_MIN, highest_ru / 100, stored_bytes / 1000**3) / MANUAL_STEP) * MANUAL_STEP


@dataclass(frozen=True, slots=True)
class ArmAccount:
    """An account's names in Azure Resource Manager (ARM)."""

    subscription: str
    resource_group: str
    account: str
    emulator: str | None = None
    """URL instead of Azure's; only on loopback, because it receives tokens."""


@dataclass(frozen=True, slots=True)
class Address:
    """One database of one account."""

    shown: str
    """The URL without secrets."""

    endpoint: str
    """`https://HOST:PORT`."""

    database: str
    throughput: Throughput | None = Throughput(MANUAL_MIN)
    """Throughput of a live release; None if serverless."""

    max_ru: int | None = None
    """RU/s for writes and scans; None for all of the container's."""

    consistency: str = "Eventual"
    """Consistency level of lookups."""

    region: str | None = None
    """Preferred region of lookups."""

    single_region: bool = False
    """Whether lookups use only the preferred region, or the first one."""

    ca: str | None = None
    key: str | None = field(default=None, repr=False)
    """The account's key, base64; None for Entra ID."""

    key_from: SecretFile | None = None
    """The file of the key, which a rotation may replace."""

    arm: ArmAccount | None = None
    """Set if containers are managed through ARM."""

    def read_key(self) -> str | None:
        """Return the account's key, as its file has it now; None for Entra ID. Raises StoreMisused; blocks."""
        return self.key if self.key_from is None else self.key_from.read().strip()

    @property
    def writing(self) -> Throughput | None:
        """Throughput of a release while it is written."""
        serving = self.throughput
        return None if serving is None else serving.rounded_up(max(serving.ru, self.max_ru or 0))

    @property
    def writing_ru(self) -> int | None:
        """RU/s for a publish; None for no limit."""
        writing = self.writing
        return self.max_ru or (None if writing is None else writing.ru)

    @property
    def loading_ru(self) -> float:
        """RU/s for reads without a time limit, such as those by which services load a release."""
        available = SERVERLESS_RU if self.throughput is None else self.throughput.ru
        return available * SHARED_SHARE

    @property
    def shared_ru(self) -> float:
        """RU/s for other work on a live release, which lookups need the rest of."""
        return min(self.loading_ru, (self.max_ru or inf) * SHARED_SHARE)

    @property
    def partition_warning(self) -> str:
        """Warning if `max_ru` is too low per partition; else empty."""
        serving = self.throughput
        writing = self.writing
        if serving is None or writing is None:
            return ""
        partitions = writing.initial_partitions
        if partitions <= serving.initial_partitions:
            return ""
        return (
            f"max_ru={self.max_ru} gives each release of {self.shown} {partitions} physical partitions for good, so "
            f"one key can be read at {serving.ru / partitions:,.0f} RU/s at most; lower max_ru, or keep it where "
            f"{serving.initial_partitions} partition(s) suffice"
        )

    def describe(self, call: TracedCall, container: str, keys: int) -> None:
        """Add OpenTelemetry's attributes of a read."""
        server = urlsplit(self.endpoint)
        call.attributes |= {
            "db.operation.name": "read_item" if keys == 1 else "read_many_items",
            "db.namespace": self.database,
            "db.collection.name": container,
            "server.address": server.hostname or "",
            "server.port": server.port or 443,
            "azure.cosmosdb.connection.mode": "gateway",
            "azure.cosmosdb.consistency.level": self.consistency,
        }


def parse(url: str, environment: Mapping[str, str] = os.environ) -> Address:
    """Parse a URL, such as `cosmos://ACCOUNT/DATABASE?ru=400`; raises StoreMisused, with a text free of secrets.

    Without HOTPLATE_COSMOS_KEY or HOTPLATE_COSMOS_KEY_FILE in the *environment*, `cosmos://` uses Entra ID, and
    `cosmos+http(s)://` the well-known key of emulators.
    """
    shown = redacted(url)
    if "@" in url.partition("?")[0]:
        raise StoreMisused(f"the URL of {shown} holds a secret; give the key as {KEY} or in a file as {KEY}_FILE")

    parts = split(url)
    options = parameters(parts, OPTIONS, shown)
    endpoint = _endpoint(parts, shown)
    database = parts.path.removeprefix("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", database):
        raise StoreMisused(f"{shown} names no database; write cosmos://ACCOUNT/DATABASE")

    return Address(
        shown,
        endpoint,
        database,
        throughput=_throughput(options.get("ru", str(MANUAL_MIN))),
        max_ru=int(options["max_ru"]) if "max_ru" in options else None,
        consistency=CONSISTENCIES[options.get("consistency", "eventual")],
        region=options.get("region"),
        single_region="failover" in options,
        ca=certificate(options, shown),
        key=(secret(KEY, environment) or "").strip() or (None if parts.scheme == "cosmos" else EMULATOR_KEY),
        key_from=secret_file(KEY, environment),
        arm=_arm_account(options, endpoint, shown),
    )


def _endpoint(parts: SplitResult, shown: str) -> str:
    """Return the URL of the account's server: `https://HOST:PORT`, or `http:` for `cosmos+http://`.

    `cosmos://` may name an account instead of a host: `cosmos://shop/…` is `https://shop.documents.azure.com:443`.
    """
    try:
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        raise StoreMisused(f"{shown} has no valid port") from None
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", host):
        raise StoreMisused(f"{shown} names no account; write cosmos://ACCOUNT/DATABASE")

    if parts.scheme == "cosmos":
        server = host if "." in host else host + HOST
        return f"https://{server}:{port or 443}"

    if port is None:
        raise StoreMisused(f"{shown} names no port; write {parts.scheme}://HOST:PORT/DATABASE")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{parts.scheme.removeprefix('cosmos+')}://{bracketed}:{port}"


def _arm_account(options: dict[str, str], endpoint: str, shown: str) -> ArmAccount | None:
    """Return the account's names in Azure Resource Manager (ARM); None if the URL does not say to use ARM.

    It does by a resource group and a subscription; StoreMisused if only one of them is given. An emulator on loopback
    serves ARM's requests itself.
    """
    group = options.get("resource_group")
    subscription = options.get("subscription")
    if group and subscription:
        host = urlsplit(endpoint).hostname or ""
        return ArmAccount(subscription, group, host.partition(".")[0], endpoint if host in LOOPBACK else None)
    if group or subscription:
        raise StoreMisused(f"{shown} needs both resource_group= and subscription=")
    return None


def _throughput(text: str) -> Throughput | None:
    """Parse `400`, `autoscale-4000`, or `serverless`, which is None."""
    if text == "serverless":
        return None
    kind, _, ru = text.rpartition("-")
    return Throughput(int(ru), autoscale=bool(kind))
