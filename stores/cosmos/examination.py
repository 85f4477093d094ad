"""What `hotplate store doctor` finds out about a Cosmos DB account, without changing anything in it."""

from urllib.parse import urlsplit

from hotplate.stores.cosmos.errors import ContainerMissing, CosmosUnavailable
from hotplate.stores.cosmos.items import CATALOGUE, CONTROL, Items
from hotplate.stores.cosmos.url import KEY, Address
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Finding, Level
from hotplate.stores.urls import LOOPBACK

# No version of an item has this etag, so a replacement by it never takes place.
NO_VERSION = '"00000000-0000-0000-0000-000000000000"'


async def examine(address: Address, items: Items, warnings: list[str]) -> list[Finding]:
    """Ask the account, for a few RU; *warnings* are what its readers could run into. Raises StoreError."""
    account = await items.account()
    regions = f"Cosmos DB, read in {', '.join(account.regions)}"
    if account.multiple_write_regions:
        sentence = f"{regions}, written in several, so nothing can be compared and set; turn multi-region writes off"
        server = Finding(Level.ERROR, "server", sentence)
    else:
        server = Finding(Level.OK, "server", regions)
    throughput = [Finding(Level.WARNING, "throughput", sentence) for sentence in warnings]
    if not throughput:
        wanted = "serverless" if address.throughput is None else f"{address.throughput.ru:,} RU/s for what is live"
        throughput = [Finding(Level.OK, "throughput", wanted)]
    return [server, await _writing(address, items), _control(address), *throughput, _transport(address)]


async def _writing(address: Address, items: Items) -> Finding:
    """Try to replace a version of the catalogue that never was: refused by its version, or for want of the right."""
    try:
        await items.replace(CONTROL, {"id": CATALOGUE}, NO_VERSION)
    except ContainerMissing:
        return Finding(Level.OK, "may publish", f"{address.shown} is empty, so this shows at the first publish")
    except CosmosUnavailable as error:
        if error.kind not in ("forbidden", "unauthorized"):
            raise
        return Finding(Level.WARNING, "may publish", f"no, which is right for a service; to publish: {error}")
    except StoreError as error:
        return Finding(Level.WARNING, "may publish", f"no: {error}")
    return Finding(Level.OK, "may publish", "yes")


def _control(address: Address) -> Finding:
    if address.arm is not None:
        return Finding(Level.OK, "containers", "are made and dropped by Azure Resource Manager")
    if address.key is not None:
        return Finding(Level.OK, "containers", "are made and dropped with the account's key")
    sentence = (
        f"cannot be made, which is right for a service; to publish, add subscription= and resource_group= or {KEY}"
    )
    return Finding(Level.WARNING, "containers", sentence)


def _transport(address: Address) -> Finding:
    parts = urlsplit(address.endpoint)
    if parts.scheme == "https":
        return Finding(Level.OK, "transport", "TLS, with a certificate that is verified")
    if parts.hostname in LOOPBACK:
        return Finding(Level.OK, "transport", "not encrypted, within this machine")
    return Finding(Level.WARNING, "transport", "lists and tokens cross the network unencrypted; use https")
