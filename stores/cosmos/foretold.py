"""What a publish into Cosmos DB would make, what was assumed of it and what could go wrong, in sentences."""

from stores.cosmos.items import CONTROL
from stores.cosmos.scaling import for_writing
from stores.cosmos.url import Address
from stores.forecast import Bill, Provisioned


def makes(address: Address, bill: Bill, *, is_first: bool, live: bool) -> tuple[str, ...]:
    """Say what is made, and what it is scaled to."""
    made = list[str]()
    if is_first:
        made.append(f"the database {address.database}, unless it is there")
    if not bill.writing:
        found = [f"the container {CONTROL}, of the catalogue: serverless"] if is_first else []
        return (*made, *found, "the container of the release: serverless, nothing indexed")
    if is_first:
        made.append(f"the container {CONTROL}, of the catalogue: {told(bill.writing[-1])}")
    born = for_writing(address)
    parts = 1 if born is None else born.partitions_at_birth
    made.append(
        f"the container of the release: {told(bill.writing[0])}, {parts} physical partition{'s' * (parts > 1)}, "
        f"nothing indexed"
    )
    then = bill.afterwards[0 if live else 1]
    if then.ru_s != bill.writing[0].ru_s:
        made.append(f"which is scaled to {told(then)} before it {'goes live' if live else 'waits'}")
    return tuple(made)


def told(one: Provisioned) -> str:
    """Say what a container has."""
    return f"{one.ru_s:,} RU/s, {'autoscale' if one.autoscale else 'manual'}"


def notes(address: Address, bill: Bill, unasked: str) -> tuple[str, ...]:
    """Say what was assumed, and what could go wrong."""
    found = list[str]()
    if unasked:
        found.append(f"assumed: nothing was published there before; it could not be asked: {unasked}")
    if address.driver == "sdk":
        found.append("azure-cosmos looks at containers a few times more than is said here; no container pays for that")
    if not bill.writing:
        found.append(f"assumed: a serverless container gives {bill.rate_ru:,.0f} RU/s, which nobody promises")
    if address.key is None and address.managed is None:
        found.append(
            "publishing will be refused: Entra ID alone lets nobody make containers; add resource_group= to the URL"
        )
    born, serving = for_writing(address), address.throughput
    if born is not None and serving is not None and born.partitions_at_birth > serving.partitions_at_birth:
        parts = born.partitions_at_birth
        found.append(
            f"a container that is born with {born.ru:,} RU/s has {parts} physical partitions for good: once it serves "
            f"with {bill.afterwards[0].ru_s:,} RU/s, one key can be read at {bill.afterwards[0].ru_s / parts:,.0f} "
            f"RU/s at most"
        )
    return tuple(found)
