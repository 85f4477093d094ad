"""A small part of Azure Resource Manager: creates, lists, scales and deletes containers for clients without a key.

https://learn.microsoft.com/rest/api/cosmos-db-resource-provider/sql-resources describes the resources. Changes are
accepted with 202 and polled for, as Azure's are:
https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from hotplate.bench.cosmos_emulator import resources
from hotplate.bench.cosmos_emulator.http import (
    CODES,
    HttpError,
    HttpHandler,
    HttpResponse,
    Request,
)
from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.cosmos_emulator.service import Service
from tests.support.cosmos_server import Emulator, emulator_thread
from tests.support.entra import ACCOUNT, ARM_AUDIENCE, OPERATOR, TokenAuthenticator, token_page

log = logging.getLogger(__name__)

PREFIX = "/subscriptions/"
# Where the emulated account is; its name is the first label of the host that it is reached by.
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
RESOURCE_GROUP = "emulation"
# Seconds until a change is reported as done; it is done at once.
OPERATION_S = 0.2

RESOURCE = re.compile(
    rf"(?P<id>{PREFIX}(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.DocumentDB"
    r"/databaseAccounts/(?P<account>[^/]+)/sqlDatabases/(?P<database>[^/]+)(?:/containers/(?P<container>[^/]+)"
    r"(?P<throughput>/throughputSettings/default)?|(?P<feed>/containers))?)",
    re.IGNORECASE,
)
STATUS = re.compile(
    rf"{PREFIX}[^/]+/providers/Microsoft\.DocumentDB/locations/[^/]+/operationsStatus/([^/]+)", re.IGNORECASE
)
ACTIONS = {"GET": "read", "PUT": "write", "DELETE": "delete"}
DATABASE = "database"
CONTAINER = "container"
THROUGHPUT = "throughput"
TYPES = {
    DATABASE: f"{ACCOUNT}/sqlDatabases",
    CONTAINER: f"{ACCOUNT}/sqlDatabases/containers",
    THROUGHPUT: f"{ACCOUNT}/sqlDatabases/containers/throughputSettings",
}


@dataclass(frozen=True, slots=True)
class ArmResource:
    """The parts of a path: names are as they were written, the words between them may be in any case."""

    id: str
    """The path itself."""

    subscription: str
    group: str
    account: str
    database: str
    container: str
    throughput: str
    feed: str
    """Not empty for all containers of the database."""

    @property
    def kind(self) -> str:
        """Return what the path names: a database, one of its containers, or that container's throughput."""
        return THROUGHPUT if self.throughput else CONTAINER if self.container or self.feed else DATABASE

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the database and, if there is one, of the container."""
        return (self.database, self.container) if self.container else (self.database,)


@dataclass(slots=True)
class ResourceManager:
    """Answers what begins with the prefix; lives as long as the emulator."""

    service: Service
    authenticator: TokenAuthenticator
    operations: dict[str, tuple[float, HttpError | None]] = field(default_factory=dict)
    """The changes that were accepted: when each is reported as done, and its error if it failed."""

    def answer(self, request: Request) -> HttpResponse:
        """Return the response to a request; never raises."""
        path = unquote(request.path)
        found, change = RESOURCE.fullmatch(path), STATUS.fullmatch(path)
        resource = ArmResource(**found.groupdict("")) if found else None
        operation = f"manage {resource.kind if resource else 'operation' if change else 'unknown'}"
        try:
            # Faults that name no operation are for the account.
            if any(fault.operation == operation for _, fault in self.service.faults.active):
                self.service.faults.before(request, operation, self.service.account.clock())
            roles = self._roles(request)
            response = self._poll(change[1]) if change else self._run(request, resource, roles)
        except HttpError as error:
            response = _error_response(error)
        except Exception:
            log.exception("a request to ARM failed; this is a defect of the emulation")
            response = _error_response(HttpError(500, "the emulation failed; see its log"))
        self.service.counts.count(operation, response.status, 0.0)
        return response

    def _run(self, request: Request, resource: ArmResource | None, roles: tuple[str, ...]) -> HttpResponse:
        if resource is None:
            raise ArmError(404, "InvalidResourceType", "this emulation does not have that resource at ARM")
        action = ACTIONS[request.method]
        if OPERATOR not in roles:
            raise ArmError(
                403,
                "AuthorizationFailed",
                f"The client 'test' does not have authorization to perform action '{TYPES[resource.kind]}/{action}' "
                f"over scope '{resource.id}' or the scope is invalid.",
            )
        _check_account(request, resource)
        return HttpResponse(200, self._read(resource)) if action == "read" else self._change(request, resource)

    def _roles(self, request: Request) -> tuple[str, ...]:
        """Return the roles of the token; 401 without a valid one."""
        scheme, _, token = request.header(b"authorization").partition(" ")
        assert scheme.lower() == "bearer"
        try:
            roles = self.authenticator.issuer.check(token, self.service.account.clock(), ARM_AUDIENCE)
        except HttpError as error:
            raise ArmError(401, "InvalidAuthenticationToken", error.message) from None
        return roles

    def _change(self, request: Request, resource: ArmResource) -> HttpResponse:
        """Carry out a PUT or a DELETE, and accept it with the URL at which it is polled for."""
        error: HttpError | None = None
        try:
            if request.method == "PUT":
                self._put(resource, request)
            else:
                resources.OPERATIONS[f"delete {resource.kind}"](self.service.account, request, *resource.names)
        except HttpError as raised:
            if request.method == "DELETE" and raised.status == 404:
                return HttpResponse(204)
            error = raised
        name = str(uuid.uuid4())
        self.operations[name] = self.service.account.clock() + OPERATION_S, error
        host, version = request.header(b"host"), parse_qs(request.query)["api-version"][0]
        status = f"{PREFIX}{SUBSCRIPTION}/providers/Microsoft.DocumentDB/locations/emulated/operationsStatus/{name}"
        url = f"{request.scheme}://{host}{status}?api-version={version}"
        return HttpResponse(202, orjson.dumps({"status": "Enqueued"}), {"azure-asyncoperation": url})

    def _poll(self, name: str) -> HttpResponse:
        """Report the status of a change."""
        done_at, error = self.operations[name]
        is_done = self.service.account.clock() >= done_at
        status = {"status": "Dequeued" if not is_done else "Failed" if error else "Succeeded"}
        failure = {"error": _error_body(error)} if is_done and error else {}
        return HttpResponse(200, orjson.dumps(status | failure))

    def _read(self, resource: ArmResource) -> bytes:
        account = self.service.account
        if resource.feed:
            names = account.database(resource.database).containers
            return orjson.dumps(
                {"value": [_described(f"{resource.id}/{name}", CONTAINER, names[name].to_json()) for name in names]}
            )
        if resource.kind == THROUGHPUT:
            offer = account.container(*resource.names).offer
            ru = offer.throughput.ru
            found: dict[str, Any] = {"minimumThroughput": str(offer.minimum_ru), "throughput": ru}
            if offer.throughput.autoscale:
                found |= {"throughput": ru // 10, "autoscaleSettings": {"maxThroughput": ru}}
        else:
            found = resources.OPERATIONS[f"read {resource.kind}"](account, None, *resource.names).to_json()
        return orjson.dumps(_described(resource.id, resource.kind, found))

    def _put(self, resource: ArmResource, request: Request) -> None:
        account, (given, options) = self.service.account, _properties(request)
        if resource.kind == THROUGHPUT:
            offer = account.container(*resource.names).offer
            throughput = resources.throughput_of(given.get("throughput"), given.get("autoscaleSettings"))
            resources.replace_throughput(offer, throughput)
            return
        if resource.kind == DATABASE:
            if resource.database not in account.databases:
                resources.create_database(account, given)
            return
        database = account.database(resource.database, is_owner=True)
        if resource.container in database.containers:
            return
        manual, autoscale = options.get("throughput"), options.get("autoscaleSettings")
        resources.create_container(account, database, given, manual, autoscale)


def _described(arm_id: str, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    name = arm_id.rpartition("/")[2]
    return {"id": arm_id, "type": TYPES[kind], "name": name, "properties": {"resource": found}}


def _properties(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the resource and the options of the body of a request."""
    properties = request.object()["properties"]
    return properties["resource"], properties.get("options") or {}


def _check_account(request: Request, resource: ArmResource) -> None:
    """Raise 404 for another subscription, resource group or account than the one there is."""
    if resource.subscription.lower() != SUBSCRIPTION:
        code, message = "Subscription", f"The subscription '{resource.subscription}' could not be found."
    elif resource.group.lower() != RESOURCE_GROUP:
        code, message = "ResourceGroup", f"Resource group '{resource.group}' could not be found."
    elif resource.account != request.header(b"host").partition(":")[0].partition(".")[0]:
        name = f"'{ACCOUNT}/{resource.account}' under resource group '{resource.group}'"
        code, message = "Resource", f"The Resource {name} was not found."
    else:
        return
    raise ArmError(404, f"{code}NotFound", message)


class ArmError(HttpError):
    """An error of ARM itself; those of the resource provider have no code of their own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, message)
        self.code = code


def _error_body(error: HttpError) -> dict[str, object]:
    code = error.code if isinstance(error, ArmError) else CODES.get(error.status, "Error")
    return {"code": code, "message": error.message}


def _error_response(error: HttpError) -> HttpResponse:
    """Make the response of an error: ARM's own are in an envelope, the resource provider's are not."""
    body = _error_body(error)
    headers = dict[str, str]()
    if wait_ms := error.headers.get("x-ms-retry-after-ms"):
        headers["retry-after"] = str(ceil(float(wait_ms) / 1000))
    return HttpResponse(error.status, orjson.dumps({"error": body} if isinstance(error, ArmError) else body), headers)


@contextmanager
def azure_account(settings: EmulatorSettings) -> Iterator[Emulator]:
    """Run an emulator that takes tokens, issues them at /__emulation/token, and answers for Azure Resource Manager."""

    def extend(service: Service, inner: HttpHandler) -> HttpHandler:
        authenticator = TokenAuthenticator(settings.key)
        service.authenticator = authenticator
        manager = ResourceManager(service, authenticator)

        def answer(request: Request) -> HttpResponse:
            if request.path.startswith(PREFIX):
                return manager.answer(request)
            if request.path == "/__emulation/token":
                return token_page(authenticator.issuer, request, service.account.clock())
            return inner(request)

        return answer

    with emulator_thread(settings, extend) as (made, _):
        yield made
