"""The URL of a Cosmos DB account: `cosmos://` and, for emulators, `cosmos+http(s)://`, and the throughput it asks for.

Sources: https://learn.microsoft.com/azure/cosmos-db/concepts-limits (values, minimum),
https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices (partitions).
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from hotplate.stores.errors import StoreMisused
from hotplate.stores.store import TracedCall
from hotplate.stores.urls import LOOPBACK, certificate, parameters, redacted, secret, split

PARTITION_RU = 10_000
INITIAL_PARTITION_RU = 6_000
MANUAL_MIN = 400
MANUAL_STEP = 100
AUTOSCALE_MIN = 1_000
AUTOSCALE_STEP = 1_000
MAX_RU = 1_000_000
# RU/s of a serverless container with one physical partition, and its capacity:
# https://learn.microsoft.com/azure/cosmos-db/serverless-performance
SERVERLESS_RU = 5_000
SERVERLESS_BYTES = 10**12
# The share of a live release's throughput that may be spent on reading all of it.
SCANNING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Throughput:
    """RU/s of one container: manual, or the top of an autoscale range that begins at a tenth of it."""

    ru: int
    autoscale: bool = False

    @property
    def initial_partitions(self) -> int:
        """Return how many physical partitions a new container of this throughput has."""
        return ceil(self.ru / (PARTITION_RU if self.autoscale else INITIAL_PARTITION_RU))

    def rounded_up(self, ru: int) -> "Throughput":
        """Return *ru* in the steps of this kind, manual or autoscale."""
        step = AUTOSCALE_STEP if self.autoscale else MANUAL_STEP
        return Throughput(ceil(ru / step) * step, self.autoscale)

    def __str__(self) -> str:
        return f"{self.ru:,} RU/s, {'autoscale' if self.autoscale else 'manual'}"


class Offer(NamedTuple):
    """The throughput of a container as the service knows it."""

    throughput: Throughput
    minimum_ru: int
    """The least that it can be set to."""

    pending: bool
    """Whether a change is under way."""


def minimum_ru(highest_ru: int, stored_bytes: int, *, autoscale: bool) -> int:
    """Return what a container cannot go below: its highest ever by 100, 1 RU/s per GB, and the least there is."""
    if autoscale:
        needed = max(AUTOSCALE_MIN, highest_ru / 10, stored_bytes / 1000**3 * 10)
        return ceil(needed / AUTOSCALE_STEP) * AUTOSCALE_STEP
    return ceil(max(MANUAL_MIN, highest_ru / 100, stored_bytes / 1000**3) / MANUAL_STEP) * MANUAL_STEP


KEY = "HOTPLATE_COSMOS_KEY"
# The variable of Azure's own tools.
SUBSCRIPTION = "AZURE_SUBSCRIPTION_ID"

# The key that Microsoft publishes for its emulators; no account of anybody has it.
EMULATOR_KEY = "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw=="

HOST = ".documents.azure.com"
OPTIONS = {"ru", "max_ru", "consistency", "region", "ca", "subscription", "resource_group", "client"}
# What reads: our own signed requests, or azure-cosmos.
SDK = "sdk"
CLIENTS = ("signed", SDK)
# What a URL may say, and what the service calls it.
CONSISTENCIES = {
    "eventual": "Eventual", "prefix": "ConsistentPrefix", "session": "Session", "bounded": "BoundedStaleness",
    "strong": "Strong",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArmAccount:
    """An account as Azure Resource Manager (ARM) names it."""

    subscription: str
    resource_group: str
    account: str
    emulator: str | None = None
    """The URL that answers in the place of Azure's; only one on loopback is ever given a token for ARM."""


@dataclass(frozen=True, slots=True)
class Address:
    """One database of one account."""

    shown: str
    """The URL without secrets, for sentences."""

    endpoint: str
    """The account's own URL, `https://HOST:PORT`, which names its regions."""

    database: str
    throughput: Throughput | None = Throughput(MANUAL_MIN)
    """Throughput of the container of a live release; None if the account is serverless."""

    max_ru: int | None = None
    """What a publish may spend in a second; None: all that the container has."""

    consistency: str = "Eventual"
    """Of lookups, as the service calls it."""

    region: str | None = None
    """The region that lookups prefer, as the account names it; None: its own order."""

    ca: str | None = None
    key: str | None = field(default=None, repr=False)
    """The account's key, base64; None where Entra ID identifies us."""

    through_sdk: bool = False
    """Whether lookups go through azure-cosmos."""

    arm: ArmAccount | None = None
    """Where containers are made, scaled and dropped through Azure Resource Manager; None: not there."""

    @property
    def writing(self) -> Throughput | None:
        """What a release's container is made with: what it serves with, or what writing may spend, if more."""
        serving = self.throughput
        return None if serving is None else serving.rounded_up(max(serving.ru, self.max_ru or 0))

    @property
    def scanning_ru(self) -> float:
        """What may be spent in a second on reading all of a live release; lookups need the rest."""
        limits = [self.max_ru, SERVERLESS_RU if self.throughput is None else self.throughput.ru]
        return min(limit for limit in limits if limit is not None) * SCANNING_SHARE

    @property
    def partition_warning(self) -> str:
        """What the partitions of a new container could do to readers; empty if nothing."""
        serving, written = self.throughput, self.writing
        if serving is None or written is None or written.initial_partitions <= serving.initial_partitions:
            return ""
        return (
            f"max_ru={self.max_ru} gives each release of {self.shown} {written.initial_partitions} physical partitions "
            f"for good, so one key can be read at {serving.ru / written.initial_partitions:,.0f} RU/s at most; lower "
            f"max_ru, or keep it where {serving.initial_partitions} partition(s) suffice"
        )

    def serving(self, offer: Offer) -> Throughput | None:
        """Return what a container that has *offer* serves with: what the URL asks for, or the least that it can have.

        Its kind stays: manual and autoscale do not change into each other here.
        """
        wanted = self.throughput
        return None if wanted is None else offer.throughput.rounded_up(max(wanted.ru, offer.minimum_ru))

    def describe(self, call: TracedCall, container: str, keys: int) -> None:
        """Say, by OpenTelemetry's conventions for Cosmos DB, how many keys are read where."""
        server = urlsplit(self.endpoint)
        call.attributes |= {
            "db.operation.name": "read_item" if keys == 1 else "read_many_items",
            "db.namespace": self.database,
            "db.collection.name": container,
            "server.address": server.hostname or "",
            "azure.cosmosdb.connection.mode": "gateway",
            "azure.cosmosdb.consistency.level": self.consistency,
        }
        if server.port is not None and server.port != 443:
            call.attributes["server.port"] = server.port


def parse(url: str, environment: Mapping[str, str] = os.environ) -> Address:
    """Read a URL; StoreMisused, with a sentence free of secrets, for one that cannot be understood.

    The key comes from HOTPLATE_COSMOS_KEY or the file HOTPLATE_COSMOS_KEY_FILE, never from the URL. Without one,
    Entra ID identifies us (`cosmos://`), or the published key of emulators is taken (`cosmos+http(s)://`). The
    subscription that goes with `resource_group=` may also come from AZURE_SUBSCRIPTION_ID.
    """
    shown = redacted(url)
    if "@" in url.partition("?")[0]:
        raise StoreMisused(f"the URL of {shown} holds a secret; give the key as {KEY} or in a file as {KEY}_FILE")
    parts = split(url)
    given = parameters(parts, OPTIONS, shown)
    endpoint, database = _endpoint(parts, shown), parts.path.removeprefix("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", database):
        raise StoreMisused(f"{shown} names no database; write cosmos://ACCOUNT/DATABASE")
    return Address(
        shown,
        endpoint,
        database,
        throughput=_throughput(given.get("ru", str(MANUAL_MIN)), shown),
        max_ru=_max_ru(given.get("max_ru"), shown),
        consistency=CONSISTENCIES[_one_of("consistency", given.get("consistency", "eventual"), CONSISTENCIES, shown)],
        region=given.get("region"),
        ca=certificate(given, shown),
        key=(secret(KEY, environment) or "").strip() or (None if parts.scheme == "cosmos" else EMULATOR_KEY),
        through_sdk=_one_of("client", given.get("client", CLIENTS[0]), CLIENTS, shown) == SDK,
        arm=_arm_account(given, endpoint, shown, environment),
    )


def _endpoint(parts: SplitResult, shown: str) -> str:
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise StoreMisused(f"{shown} has no valid port") from None
    if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", host):
        raise StoreMisused(f"{shown} names no account; write cosmos://ACCOUNT/DATABASE")
    bracketed = f"[{host}]" if ":" in host else host
    if parts.scheme == "cosmos":
        return f"https://{host if '.' in host else host + HOST}:{port or 443}"
    if port is None:
        raise StoreMisused(f"{shown} names no port; write {parts.scheme}://HOST:PORT/DATABASE")
    return f"{parts.scheme.removeprefix('cosmos+')}://{bracketed}:{port}"


def _arm_account(given: dict[str, str], endpoint: str, shown: str, environment: Mapping[str, str]) -> ArmAccount | None:
    group = given.get("resource_group")
    subscription = given.get("subscription") or environment.get(SUBSCRIPTION)
    if group is None:
        if "subscription" in given:
            raise StoreMisused(f"{shown} names a subscription, and no resource group; add resource_group=")
        return None
    if not subscription:
        raise StoreMisused(
            f"{shown} names a resource group, and no subscription; add subscription=, or set {SUBSCRIPTION}"
        )
    if not re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", subscription):
        raise StoreMisused(
            f"subscription={subscription[:40]} of {shown} is not an id; `az account show --query id` prints it"
        )
    if not re.fullmatch(r"[\w().-]{1,90}", group):
        raise StoreMisused(
            f"resource_group={group[:90]} of {shown} is not the name of a resource group; a name has 1 to 90 letters, "
            f"digits or any of _ - . ( )"
        )
    host = urlsplit(endpoint).hostname or ""
    return ArmAccount(subscription, group, host.partition(".")[0], endpoint if host in LOOPBACK else None)


def _throughput(text: str, shown: str) -> Throughput | None:
    """Read `400`, `autoscale-4000` or `serverless`."""
    if text == "serverless":
        return None
    kind, _, top = text.rpartition("-")
    least, step = (AUTOSCALE_MIN, AUTOSCALE_STEP) if kind else (MANUAL_MIN, MANUAL_STEP)
    if (
        kind not in ("", "autoscale")
        or not re.fullmatch(r"[0-9]{1,7}", top)
        or not (least <= int(top) <= MAX_RU and int(top) % step == 0)
    ):
        raise StoreMisused(
            f"ru={text} of {shown} is not a throughput: write 400 and more in steps of 100, autoscale-1000 and more in "
            "steps of 1000, or serverless"
        )
    return Throughput(int(top), autoscale=bool(kind))


def _max_ru(text: str | None, shown: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 0 < int(text) <= MAX_RU:
        raise StoreMisused(f"max_ru={text} of {shown} is not a number of RU/s between 1 and {MAX_RU:,}")
    return int(text)


def _one_of(name: str, text: str, known: Collection[str], shown: str) -> str:
    if text not in known:
        raise StoreMisused(f"{name}={text} of {shown} is not known; there are {', '.join(known)}")
    return text
