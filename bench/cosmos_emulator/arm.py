"""A small part of Azure Resource Manager: creates, scales and deletes containers for clients without a key.

https://learn.microsoft.com/rest/api/cosmos-db-resource-provider/sql-resources describes the resources. Changes are
accepted with 202 and polled for, as Azure's are:
https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

import logging
import re
import uuid
from dataclasses import dataclass, field
from math import ceil
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from bench.cosmos_emulator import resources
from bench.cosmos_emulator.auth import ACCOUNT, ARM_AUDIENCE, OPERATOR
from bench.cosmos_emulator.errors import CODES, HttpError, bad_request
from bench.cosmos_emulator.http import Request, Response, parse_object
from bench.cosmos_emulator.service import Service, method_not_allowed

log = logging.getLogger(__name__)

PREFIX = "/subscriptions/"
# Where the emulated account is; its name is the first label of the host that it is reached by.
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
RESOURCE_GROUP = "emulation"
# Seconds until a change is reported as done; it is done at once.
OPERATION_S = 0.2
# Operations that are remembered; Azure forgets them after a day.
MAX_OPERATIONS = 1_000

RESOURCE = re.compile(
    rf"({PREFIX}([^/]+)/resourceGroups/([^/]+)/providers/Microsoft\.DocumentDB/databaseAccounts/([^/]+)"
    r"/sqlDatabases/([^/]+)(?:/containers/([^/]+)(/throughputSettings/default)?)?)(?:/operationResults/([^/]+))?",
    re.IGNORECASE,
)
STATUS = re.compile(
    rf"{PREFIX}[^/]+/providers/Microsoft\.DocumentDB/locations/[^/]+/operationsStatus/([^/]+)", re.IGNORECASE
)
ACTIONS = {"GET": "read", "PUT": "write", "DELETE": "delete"}
DATABASE, CONTAINER, THROUGHPUT = "database", "container", "throughput"
TYPES = {
    DATABASE: f"{ACCOUNT}/sqlDatabases",
    CONTAINER: f"{ACCOUNT}/sqlDatabases/containers",
    THROUGHPUT: f"{ACCOUNT}/sqlDatabases/containers/throughputSettings",
}


@dataclass(frozen=True, slots=True)
class ArmResource:
    """What a path names: a database, one of its containers, or that container's throughput."""

    id: str
    """The path itself, without what follows the resource."""

    subscription: str
    group: str
    account: str
    database: str
    container: str
    kind: str
    operation: str | None
    """The change whose result is polled for."""

    @property
    def noun(self) -> str:
        """Return how metrics and faults name it."""
        return "operation" if self.operation else self.kind


@dataclass(frozen=True, slots=True)
class Operation:
    """A change that was accepted: when it is reported as done, and its error if it failed."""

    done_at: float
    error: HttpError | None


@dataclass(slots=True)
class ResourceManager:
    """Answers what begins with the prefix; lives as long as the emulator."""

    service: Service
    operations: dict[str, Operation] = field(default_factory=dict)

    def answer(self, request: Request) -> Response:
        """Return the response to a request; never raises."""
        path = unquote(request.path)
        resource, status = _parse(path), STATUS.fullmatch(path)
        operation = f"manage {resource.noun if resource else 'operation' if status else 'unknown'}"
        try:
            self._raise_fault(request, operation)
            response = self._run(request, resource, path, status[1] if status else None)
        except HttpError as error:
            response = _error_response(error)
        except Exception:
            log.exception("a request to ARM failed; this is a defect of the emulation")
            response = _error_response(HttpError(500, "the emulation failed; see its log"))
        self.service.counts.count(operation, response.status, 0.0)
        return response

    def _raise_fault(self, request: Request, operation: str) -> None:
        """Raise the fault that is in force for ARM; those that name no operation are for the account."""
        faults = self.service.faults
        if any(fault.operation == operation for fault in faults.active):
            faults.before(request, operation, self.service.account.clock())

    def _run(self, request: Request, resource: ArmResource | None, path: str, operation: str | None) -> Response:
        roles = self._roles(request)
        if "api-version" not in parse_qs(request.query):
            message = "The api-version query parameter (?api-version=) is required"
            raise _arm_error(400, "MissingApiVersionParameter", message)
        if operation is not None:
            return self._status(operation)
        if resource is None:
            raise _arm_error(404, "InvalidResourceType", "this emulation has no such resource at ARM")
        action = ACTIONS.get(request.method)
        if action is None or (resource.kind == THROUGHPUT and action == "delete"):
            raise method_not_allowed(request)
        if OPERATOR not in roles:
            raise _arm_error(
                403,
                "AuthorizationFailed",
                f"The client 'test' does not have authorization to perform action '{TYPES[resource.kind]}/{action}' "
                f"over scope '{path}' or the scope is invalid.",
            )
        _check_account(request, resource)
        if resource.operation is not None:
            return self._result(resource.operation, resource)
        if action == "read":
            return Response(200, self._read(resource))
        return self._change(request, resource)

    def _roles(self, request: Request) -> tuple[str, ...]:
        scheme, _, token = request.header(b"authorization").partition(" ")
        if scheme.lower() != "bearer":
            message = "Authentication failed. The 'Authorization' header is missing."
            raise _arm_error(401, "AuthenticationFailed", message)
        try:
            return self.service.authenticator.roles(token, self.service.account.clock(), ARM_AUDIENCE)
        except HttpError as error:
            raise _arm_error(401, "InvalidAuthenticationToken", error.message) from None

    def _change(self, request: Request, resource: ArmResource) -> Response:
        """Carry out a PUT or a DELETE, and accept it with the URLs at which it is polled for."""
        error: HttpError | None = None
        try:
            if request.method == "PUT":
                self._put(resource, request.body)
            else:
                self._delete(resource)
        except HttpError as raised:
            if request.method == "DELETE" and raised.status == 404:
                return Response(204)
            error = raised
        name = str(uuid.uuid4())
        self.operations[name] = Operation(self.service.account.clock() + OPERATION_S, error)
        if len(self.operations) > MAX_OPERATIONS:
            del self.operations[next(iter(self.operations))]
        host = f"{request.scheme}://{request.header(b'host')}"
        version = parse_qs(request.query)["api-version"][0]
        status = f"{PREFIX}{SUBSCRIPTION}/providers/Microsoft.DocumentDB/locations/emulated/operationsStatus/{name}"
        headers = {
            "azure-asyncoperation": f"{host}{status}?api-version={version}",
            "location": f"{host}{resource.id}/operationResults/{name}?api-version={version}",
        }
        return Response(202, orjson.dumps({"status": "Enqueued"}), headers)

    def _operation(self, name: str) -> Operation:
        found = self.operations.get(name)
        if found is None:
            raise _arm_error(404, "NotFound", "there is no such operation")
        return found

    def _status(self, name: str) -> Response:
        operation = self._operation(name)
        if self.service.account.clock() < operation.done_at:
            return Response(200, orjson.dumps({"status": "Dequeued"}))
        if operation.error is None:
            return Response(200, orjson.dumps({"status": "Succeeded"}))
        return Response(200, orjson.dumps({"status": "Failed", "error": _error_body(operation.error)}))

    def _result(self, name: str, resource: ArmResource) -> Response:
        operation = self._operation(name)
        if self.service.account.clock() < operation.done_at:
            return Response(202, orjson.dumps({"status": "Dequeued"}))
        if operation.error is not None:
            raise operation.error
        try:
            return Response(200, self._read(resource))
        except HttpError:
            return Response(204)

    def _read(self, resource: ArmResource) -> bytes:
        account = self.service.account
        if resource.kind == DATABASE:
            found = account.database(resource.database).to_json()
        else:
            container = account.container(resource.database, resource.container)
            found = container.to_json()
        if resource.kind == THROUGHPUT:
            offer = account.offer_of(container)
            ru = offer.throughput.ru
            found = {"minimumThroughput": str(offer.minimum_ru), "throughput": ru}
            if offer.throughput.autoscale:
                found |= {"throughput": ru // 10, "autoscaleSettings": {"maxThroughput": ru}}
        name, arm_type = resource.id.rpartition("/")[2], TYPES[resource.kind]
        return orjson.dumps({"id": resource.id, "type": arm_type, "name": name, "properties": {"resource": found}})

    def _put(self, resource: ArmResource, body: bytes) -> None:
        account, (given, options) = self.service.account, _properties(body)
        if resource.kind == THROUGHPUT:
            offer = account.offer_of(account.container(resource.database, resource.container))
            throughput = resources.throughput_of(given.get("throughput"), given.get("autoscaleSettings"))
            resources.replace_throughput(account, offer, throughput)
            return
        if resource.kind == DATABASE:
            if options:
                raise bad_request(resources.SHARED_THROUGHPUT)
            if resource.database not in account.databases:
                resources.create_database(account, given)
            return
        database = account.database(resource.database, is_owner=True)
        if resource.container in database.containers:
            resources.replace_container(account, database.containers[resource.container], given)
            return
        manual, autoscale = options.get("throughput"), options.get("autoscaleSettings")
        resources.create_container(account, database, given, manual, autoscale)

    def _delete(self, resource: ArmResource) -> None:
        account = self.service.account
        if resource.kind == DATABASE:
            resources.delete_database(account, account.database(resource.database))
        else:
            resources.delete_container(account, account.container(resource.database, resource.container))


def _parse(path: str) -> ArmResource | None:
    """Parse a path; names are as they were written, the words between them may be in any case."""
    found = RESOURCE.fullmatch(path)
    if found is None:
        return None
    resource_id, subscription, group, account, database, container, throughput, operation = found.groups()
    kind = THROUGHPUT if throughput else CONTAINER if container else DATABASE
    return ArmResource(resource_id, subscription, group, account, database, container or "", kind, operation)


def _properties(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the resource and the options of a body."""
    properties = parse_object(body).get("properties")
    resource = properties.get("resource") if isinstance(properties, dict) else None
    if not isinstance(properties, dict) or not isinstance(resource, dict):
        raise bad_request("the body has no properties.resource")
    options = properties.get("options") or {}
    if not isinstance(options, dict):
        raise bad_request("properties.options must be an object")
    return resource, options


def _check_account(request: Request, resource: ArmResource) -> None:
    """Raise 404 for another subscription, resource group or account than the one there is."""
    if resource.subscription.lower() != SUBSCRIPTION:
        message = f"The subscription '{resource.subscription}' could not be found."
        raise _arm_error(404, "SubscriptionNotFound", message)
    if resource.group.lower() != RESOURCE_GROUP:
        message = f"Resource group '{resource.group}' could not be found."
        raise _arm_error(404, "ResourceGroupNotFound", message)
    if resource.account != request.header(b"host").partition(":")[0].partition(".")[0]:
        name = f"Microsoft.DocumentDB/databaseAccounts/{resource.account}"
        message = f"The Resource '{name}' under resource group '{resource.group}' was not found."
        raise _arm_error(404, "ResourceNotFound", message)


def _arm_error(status: int, code: str, message: str) -> HttpError:
    """Make an error of ARM itself; those of the resource provider have no code of their own."""
    return HttpError(status, message, details={"code": code})


def _error_body(error: HttpError) -> dict[str, object]:
    return {"code": error.details.get("code") or CODES.get(error.status, "Error"), "message": error.message}


def _error_response(error: HttpError) -> Response:
    """Make the response of an error: ARM's own are in an envelope, the resource provider's are not."""
    body = _error_body(error)
    headers = dict[str, str]()
    if wait_ms := error.headers.get("x-ms-retry-after-ms"):
        headers["retry-after"] = str(ceil(float(wait_ms) / 1000))
    return Response(error.status, orjson.dumps({"error": body} if "code" in error.details else body), headers)
