"""Who makes, scales and drops containers: the account for its key, Azure Resource Manager for Entra ID, or nobody."""

from typing import NoReturn

from stores.cosmos.driver import Containers, Driver, Offer
from stores.cosmos.throughput import Throughput
from stores.cosmos.url import KEY, Address
from stores.errors import StoreMisused


def containers_of(address: Address, driver: Driver) -> Containers:
    """Return whom to ask about containers; ModuleNotFoundError where that takes an extra that is not installed."""
    if address.managed is not None:
        from stores.cosmos.arm import ArmContainers  # noqa: PLC0415 -- only who publishes without a key needs it

        return ArmContainers(address, address.managed)
    return driver if address.key is not None else Nobody(address)


class Nobody:
    """Stands where only items can be reached: whatever is asked is refused with what to do. Nothing is to be closed."""

    def __init__(self, address: Address) -> None:
        self._sentence = (
            f"{address.shown} is reached by Entra ID, which lets nobody make, scale or drop containers at the account "
            f"itself; add subscription= and resource_group= to its URL and give this identity the role Cosmos DB "
            f"Operator, or give the account's key as {KEY}"
        )

    async def create_database(self) -> bool:
        """See `Containers`."""
        self._refuse()

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        """See `Containers`."""
        del container, throughput
        self._refuse()

    async def delete_container(self, container: str) -> None:
        """See `Containers`."""
        del container
        self._refuse()

    async def offer(self, container: str) -> Offer | None:
        """See `Containers`."""
        del container
        self._refuse()

    async def scale(self, container: str, throughput: Throughput) -> None:
        """See `Containers`."""
        del container, throughput
        self._refuse()

    async def close(self) -> None:
        """See `Containers`."""

    def _refuse(self) -> NoReturn:
        raise StoreMisused(self._sentence)
