"""The control plane: creates, lists, scales and deletes containers."""

from typing import Protocol

from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.cosmos.url import KEY, Address, Offer, Throughput
from hotplate.stores.errors import StoreMisused, extra_installed
from hotplate.stores.store import Observer


class Containers(Protocol):
    """Control plane of one database; each call is one attempt, and raises StoreError."""

    async def create_database(self) -> None:
        """Create the database, unless it exists."""

    async def create_container(self, container: str, throughput: Throughput | None) -> None:
        """Create a container, unless it exists; *throughput* is None if serverless."""

    async def list_containers(self) -> list[str]:
        """Return all containers; ContainerMissing without a database."""

    async def delete_container(self, container: str) -> None:
        """Delete a container, if it exists."""

    async def offer(self, container: str) -> Offer | None:
        """Return the throughput of a container; None if serverless."""

    async def scale(self, container: str, throughput: Throughput) -> None:
        """Start a change of throughput; `offer` shows when it is done."""

    async def close(self) -> None:
        """Close connections. Idempotent."""


def open_containers(address: Address, observer: Observer | None = None) -> Containers:
    """Open the control plane, which creates, scales and deletes containers.

    That is Azure Resource Manager (ARM) if the URL names a resource group, else the account by its key. Raises
    StoreMisused without either.
    """
    with extra_installed("cosmos"):
        if address.arm is not None:
            from hotplate.stores.cosmos.arm import ArmContainers  # noqa: PLC0415 -- slow to import

            return ArmContainers(address, address.arm)
        if address.key is not None:
            from hotplate.stores.cosmos.account import CosmosAccount  # noqa: PLC0415 -- as above

            return CosmosAccount(address, observer)
    raise StoreMisused(
        f"Entra ID cannot create, scale or delete containers of {address.shown} at the account itself; add "
        f"subscription= and resource_group= to its URL and give this identity the role Cosmos DB Operator, or give the "
        f"account's key as {KEY}"
    )


async def create_container(containers: Containers, container: str, throughput: Throughput | None) -> None:
    """Create a container unless it exists, and first the database if there is none."""
    try:
        await containers.create_container(container, throughput)
    except ContainerMissing:
        await containers.create_database()
        await containers.create_container(container, throughput)


async def scale_to_serve(containers: Containers, container: str, wanted: Throughput) -> Offer | None:
    """Start to scale a container to serve with the *wanted* throughput, or its minimum if that is higher.

    Returns the throughput that it has until then; None if that is right already, or the account serverless.
    """
    offer = await containers.offer(container)
    if offer is None or offer.pending:
        return offer
    serving = offer.serving(wanted)
    if offer.throughput == serving:
        return None
    await containers.scale(container, serving)
    return offer


async def scale_to_minimum(containers: Containers, container: str) -> None:
    """Start to scale a container to its minimum, unless a change is pending."""
    offer = await containers.offer(container)
    if offer is not None and not offer.pending and offer.throughput.ru > offer.minimum_ru:
        await containers.scale(container, Throughput(offer.minimum_ru, offer.throughput.autoscale))
