"""What a traced read of Cosmos DB says of itself, by OpenTelemetry's conventions for it.

They are https://opentelemetry.io/docs/specs/semconv/db/cosmosdb/; names of regions are as the account has them.
"""

from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from hotplate.stores.cosmos.errors import CHARGE_HEADER
from hotplate.stores.cosmos.url import Address
from hotplate.stores.http1 import Response
from hotplate.stores.traces import TracedCall

CHARGE = "azure.cosmosdb.operation.request_charge"
REGIONS = "azure.cosmosdb.operation.contacted_regions"


def describe(call: TracedCall, address: Address, container: str, keys: Sequence[str]) -> None:
    """Say what is read where."""
    server = urlsplit(address.endpoint)
    call.attributes |= {
        "db.operation.name": "read_item" if len(keys) == 1 else "read_many_items",
        "db.namespace": address.database,
        "db.collection.name": container,
        "server.address": server.hostname or "",
        "azure.cosmosdb.connection.mode": "gateway",
        "azure.cosmosdb.consistency.level": address.consistency,
    }
    if server.port is not None and server.port != 443:
        call.attributes["server.port"] = server.port


def note_response(call: TracedCall, region: str, response: Response) -> None:
    """Add what one response says, of a region that is called so."""
    attributes = call.attributes
    attributes["db.response.status_code"] = str(response.status)
    regions = attributes.get(REGIONS, ())
    if isinstance(regions, tuple) and region not in regions:
        attributes[REGIONS] = (*regions, region)
    sub_status = response.header(b"x-ms-substatus")
    if sub_status is not None and sub_status[:9].isdigit():
        attributes["azure.cosmosdb.response.sub_status_code"] = int(sub_status[:9])
    charged = attributes.get(CHARGE, 0.0)
    with suppress(ValueError):
        if isinstance(charged, float):
            attributes[CHARGE] = charged + float(response.header(CHARGE_HEADER) or 0)
