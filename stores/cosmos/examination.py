"""Findings of `hotplate store doctor` about an account: regions, identity, reading, writing, throughput, transport."""

from functools import partial
from urllib.parse import urlsplit

from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing, CosmosDenied
from hotplate.stores.cosmos.items import CATALOGUE, CONTROL, item_bytes, without_system_properties
from hotplate.stores.cosmos.signed import CHARGE, REGIONS, SignedClient
from hotplate.stores.cosmos.url import KEY, Address
from hotplate.stores.store import MAY_PUBLISH, Finding, Level, StoreUse, TracedCall, traced_call
from hotplate.stores.urls import LOOPBACK

# An etag that no item has.
NO_VERSION = '"00000000-0000-0000-0000-000000000000"'
# Accepted deviation of a read's charge from our table.
CHARGE_TOLERANCE = 0.1
# Consistency levels that double it.
STRONG = ("BoundedStaleness", "Strong")

_ok = partial(Finding, Level.OK)
_warning = partial(Finding, Level.WARNING)
_error = partial(Finding, Level.ERROR, prevents=(StoreUse.PUBLISHING,))


async def examine(address: Address, client: SignedClient, charges: Charges) -> list[Finding]:
    """Examine a database without changing it. Raises StoreError."""
    return [
        await _regions(client),
        _ok("identity", "Entra ID" if address.key is None else "the account's key"),
        *await _reading(address, client, charges),
        *await _writing(address, client),
        _throughput(address),
        _transport(address),
    ]


async def _regions(client: SignedClient) -> Finding:
    """List the account's regions; an error if several of them take writes."""
    account = await client.account()
    regions = ", ".join(account.regions)
    if account.multiple_write_regions:
        advice = "is written in several regions, so nothing can be compared and set; turn multi-region writes off"
        return _error("server", f"{regions}: {advice}")
    return _ok("server", f"Cosmos DB, read in {regions}")


async def _reading(address: Address, client: SignedClient, charges: Charges) -> list[Finding]:
    """Read the catalogue as a lookup would; return whether that works, and whether its charge is as *charges* says.

    *charges* is the table of request units (RU) that pacing and plans rely on.
    """
    call = TracedCall()  # the client adds regions and charge to its attributes
    reset = traced_call.set(call)
    try:
        catalogue = await client.read(CONTROL, CATALOGUE, DEADLINE_S)
    except ContainerMissing:
        catalogue = None
    finally:
        traced_call.reset(reset)
    if catalogue is None:
        return [_shown_at_first_publish("read", address)]

    size = item_bytes(catalogue)
    regions = call.attributes.get(REGIONS)
    charge_ru = call.attributes.get(CHARGE)
    where = f" from {', '.join(regions)}" if isinstance(regions, tuple) else ""
    findings = [_ok("read", f"the catalogue, {size:,} bytes{where}")]
    if isinstance(charge_ru, float):
        expected_ru = charges.read(size, strong=address.consistency in STRONG)
        findings.append(_charge(size, charge_ru, expected_ru))
    return findings


def _charge(size: int, charge_ru: float, expected_ru: float) -> Finding:
    sentence = f"a read of {size:,} bytes took {charge_ru:.2f} RU, by our table {expected_ru:.2f}"
    if abs(charge_ru - expected_ru) <= CHARGE_TOLERANCE * expected_ru:
        return _ok("charge", sentence)
    return _warning("charge", f"{sentence}; measure with `hotplate bench charges`, or plans and estimates are wrong")


async def _writing(address: Address, client: SignedClient) -> list[Finding]:
    """Check whether this identity may publish, and whether the service compares etags, without a change.

    To that end, tries to replace a version of the catalogue that does not exist by the stored one. The service must
    refuse that; one that does not leaves the catalogue as it was.
    """
    if address.arm is None and address.key is None:
        advice = f"to publish, add subscription= and resource_group= or {KEY}"
        return [_warning(MAY_PUBLISH, f"no, which is right for a service; {advice}")]

    try:
        catalogue = (await client.read_fresh(CONTROL, CATALOGUE)).item
        if catalogue is None:
            return [_shown_at_first_publish(MAY_PUBLISH, address)]
        written = await client.replace(CONTROL, without_system_properties(catalogue), NO_VERSION)
    except ContainerMissing:
        return [_shown_at_first_publish(MAY_PUBLISH, address)]
    except CosmosDenied as error:
        return [_warning(MAY_PUBLISH, f"no, which is right for a service; to publish: {error}")]

    if written.applied:
        etag = _error("etag", "a write to another version was accepted; do not publish here")
    else:
        etag = _ok("etag", "a write to another version is refused")
    return [_ok(MAY_PUBLISH, "yes"), etag]


def _shown_at_first_publish(subject: str, address: Address) -> Finding:
    return _ok(subject, f"{address.shown} is empty, so this shows at the first publish")


def _throughput(address: Address) -> Finding:
    if address.partition_warning:
        return _warning("throughput", address.partition_warning)
    if address.throughput is None:
        return _ok("throughput", "serverless")
    return _ok("throughput", f"{address.throughput.ru:,} RU/s for what is live")


def _transport(address: Address) -> Finding:
    server = urlsplit(address.endpoint)
    if server.scheme == "http" and server.hostname not in LOOPBACK:
        return _warning("transport", "lists and tokens cross the network unencrypted; use https")
    return _ok("transport", "encrypted, or within this machine")
