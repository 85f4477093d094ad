"""What a token may do at the account's own endpoint: find its way, read and write items; never make or scale anything.

https://learn.microsoft.com/azure/cosmos-db/reference-data-plane-security lists the actions of the two roles;
https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac says that databases, containers and throughput have none.
"""

from bench.cosmos_emulator.errors import DATA_NOT_GRANTED, METADATA_NOT_GRANTED, NOT_FOR_TOKENS, Refused
from bench.cosmos_emulator.messages import Request
from bench.cosmos_emulator.tokens import CONTRIBUTOR, READER

ACCOUNT = "Microsoft.DocumentDB/databaseAccounts"
CONTAINERS = f"{ACCOUNT}/sqlDatabases/containers"
ACTIONS = {
    "read item": f"{CONTAINERS}/items/read",
    "list items": f"{CONTAINERS}/readChangeFeed",
    "query items": f"{CONTAINERS}/executeQuery",
    "plan query": f"{CONTAINERS}/executeQuery",
    "create item": f"{CONTAINERS}/items/create",
    "upsert item": f"{CONTAINERS}/items/upsert",
    "replace item": f"{CONTAINERS}/items/replace",
    "patch item": f"{CONTAINERS}/items/replace",
    "delete item": f"{CONTAINERS}/items/delete",
    "batch items": f"{CONTAINERS}/items/*",
}
"""What each operation on items needs; all that only reads the rest needs `readMetadata`."""

WRITES = ("create", "upsert", "replace", "patch", "delete", "batch")


def permit(roles: tuple[str, ...], operation: str, request: Request) -> None:
    """Refuse with 403 what no token may do, and what these *roles* do not allow, in the service's words."""
    if "offer" in operation or (operation not in ACTIONS and operation.startswith(WRITES)):
        asked = f"{request.method} {request.path.rstrip('/')}"
        raise _blocked(f"The given request [{asked}] cannot be authorized by AAD token in data plane", NOT_FOR_TOKENS)
    needed = (CONTRIBUTOR,) if operation.startswith(WRITES) else (CONTRIBUTOR, READER)
    if not set(roles) & set(needed):
        action = ACTIONS.get(operation, f"{ACCOUNT}/readMetadata")
        said = "Request is blocked because principal [test] does not have required RBAC permissions"
        raise _blocked(
            f"{said} to perform action [{action}]", DATA_NOT_GRANTED if operation in ACTIONS else METADATA_NOT_GRANTED
        )


def _blocked(why: str, substatus: int) -> Refused:
    return Refused(
        403,
        f"Request blocked by Auth hotplate-emulation : {why}. Learn more: https://aka.ms/cosmos-native-rbac.",
        substatus,
    )
