"""A miniature of Azure Resource Manager: what a publisher without a key needs to make, scale and drop containers.

Changes are accepted with 202 and followed by asking, as Azure's own are:
https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

import logging
import re
import uuid
from dataclasses import dataclass, field
from math import ceil
from urllib.parse import parse_qs, unquote

import orjson

from bench.cosmos_emulator import managed
from bench.cosmos_emulator.errors import CODES, Refused
from bench.cosmos_emulator.managed import Place
from bench.cosmos_emulator.messages import Answer, Request
from bench.cosmos_emulator.service import Service
from bench.cosmos_emulator.tokens import MANAGEMENT, OPERATOR

log = logging.getLogger(__name__)

PREFIX = "/subscriptions/"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
GROUP = "emulation"
"""Where the emulated account is; its name is the first label of the host that it is reached by."""

TAKES_S = 0.2
"""How long a change takes until it is told as done; it is done at once."""

MOST_CHANGES = 1_000
"""Changes that are remembered; Azure forgets them after a day."""

RESOURCE = re.compile(
    rf"{PREFIX}([^/]+)/resourceGroups/([^/]+)/providers/Microsoft\.DocumentDB/databaseAccounts/([^/]+)"
    r"/sqlDatabases/([^/]+)(?:/containers/([^/]+)(/throughputSettings/default)?)?(?:/operationResults/([^/]+))?",
    re.IGNORECASE,
)
STATUS = re.compile(
    rf"{PREFIX}[^/]+/providers/Microsoft\.DocumentDB/locations/[^/]+/operationsStatus/([^/]+)", re.IGNORECASE
)
ACTIONS = {"GET": "read", "PUT": "write", "DELETE": "delete"}
NOUNS = {"database": "", "container": "/containers", "throughput": "/containers/throughputSettings"}


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was accepted: when it is told as done, and why it failed if it did."""

    done_at: float
    refusal: Refused | None


@dataclass(slots=True)
class Management:
    """Answers what begins with the prefix; lives as long as the emulator."""

    service: Service
    changes: dict[str, Change] = field(default_factory=dict)

    def answer(self, request: Request) -> Answer:
        """Answer a request; never raises."""
        path = unquote(request.path)
        place = RESOURCE.fullmatch(path)
        status = STATUS.fullmatch(path)
        noun = "operation" if status or (place and place[7]) else place_of(place, path).noun if place else "unknown"
        operation = f"manage {noun}"
        try:
            self._fail(request, operation)
            answer = self._do(request, place, path, status[1] if status else None)
        except Refused as refusal:
            answer = told(refusal)
        except Exception:
            log.exception("a request to ARM failed; this is a defect of the emulation")
            answer = told(Refused(500, "the emulation failed; its log says where"))
        self.service.counts.count(operation, answer.status, 0.0)
        return answer

    def _fail(self, request: Request, operation: str) -> None:
        """Raise the fault that is in force for ARM; those that name no operation are for the account."""
        faults = self.service.faults
        if any(fault.operation == operation for fault in faults.active):
            faults.before(request, operation, self.service.account.clock())

    def _do(self, request: Request, found: re.Match[str] | None, path: str, change: str | None) -> Answer:
        roles = self._roles(request)
        if "api-version" not in parse_qs(request.query):
            raise _refusal(
                400, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required"
            )
        if change is not None:
            return self._status(change)
        if found is None:
            raise _refusal(404, "InvalidResourceType", "this emulation has no such resource at ARM")
        place = place_of(found, path)
        action = ACTIONS.get(request.method)
        if action is None or (place.is_throughput and action == "delete"):
            raise Refused(405, f"this emulation does not answer {request.method[:20]} there")
        if OPERATOR not in roles:
            raise _unauthorized(f"{managed.TYPE}{NOUNS[place.noun]}/{action}", path)
        _check_account(request, found)
        if found[7] is not None:
            return self._result(found[7], place)
        return self._resource(request, place)

    def _roles(self, request: Request) -> tuple[str, ...]:
        kind, _, token = request.text(b"authorization").partition(" ")
        if kind.lower() != "bearer":
            raise _refusal(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
        try:
            return self.service.keeper.roles(token, self.service.account.clock(), MANAGEMENT)
        except Refused as refusal:
            raise _refusal(401, "InvalidAuthenticationToken", refusal.message) from None

    def _resource(self, request: Request, place: Place) -> Answer:
        account = self.service.account
        if request.method == "GET":
            return Answer(200, managed.read(account, place))
        refusal: Refused | None = None
        try:
            if request.method == "PUT":
                managed.put(account, place, request.body)
            elif not managed.delete(account, place):
                return Answer(204)
        except Refused as raised:
            refusal = raised
        return self._accepted(request, place, Change(account.clock() + TAKES_S, refusal))

    def _accepted(self, request: Request, place: Place, change: Change) -> Answer:
        name = str(uuid.uuid4())
        self.changes[name] = change
        if len(self.changes) > MOST_CHANGES:
            del self.changes[next(iter(self.changes))]
        at = f"{request.scheme}://{request.text(b'host')}"
        version = parse_qs(request.query)["api-version"][0]
        followed = f"{PREFIX}{SUBSCRIPTION}/providers/Microsoft.DocumentDB/locations/emulated/operationsStatus/{name}"
        headers = {
            "azure-asyncoperation": f"{at}{followed}?api-version={version}",
            "location": f"{at}{place.id}/operationResults/{name}?api-version={version}",
        }
        return Answer(202, orjson.dumps({"status": "Enqueued"}), headers)

    def _change(self, name: str) -> Change:
        found = self.changes.get(name)
        if found is None:
            raise _refusal(404, "NotFound", "there is no such operation")
        return found

    def _status(self, name: str) -> Answer:
        change = self._change(name)
        if self.service.account.clock() < change.done_at:
            return Answer(200, orjson.dumps({"status": "Dequeued"}))
        if change.refusal is None:
            return Answer(200, orjson.dumps({"status": "Succeeded"}))
        error = {"code": CODES.get(change.refusal.status, "Error"), "message": change.refusal.message}
        return Answer(200, orjson.dumps({"status": "Failed", "error": error}))

    def _result(self, name: str, place: Place) -> Answer:
        change = self._change(name)
        if self.service.account.clock() < change.done_at:
            return Answer(202, orjson.dumps({"status": "Dequeued"}))
        if change.refusal is not None:
            raise change.refusal
        try:
            return Answer(200, managed.read(self.service.account, place))
        except Refused:
            return Answer(204)


def place_of(found: re.Match[str], path: str) -> Place:
    """Return what a path names; the names are as they were written, the words between them as anybody writes them."""
    return Place(path.partition("/operationResults/")[0], found[4], found[5], is_throughput=found[6] is not None)


def told(refusal: Refused) -> Answer:
    """Make the answer of a refusal: ARM's own are in an envelope, the resource provider's are not."""
    code = refusal.details.get("code")
    error = {"code": code or CODES.get(refusal.status, "Error"), "message": refusal.message}
    headers = dict[str, str]()
    if wait_ms := refusal.headers.get("x-ms-retry-after-ms"):
        headers["retry-after"] = str(ceil(float(wait_ms) / 1000))
    return Answer(refusal.status, orjson.dumps({"error": error} if code else error), headers)


def _check_account(request: Request, found: re.Match[str]) -> None:
    """Refuse another subscription, resource group or account than the one there is."""
    subscription, group, account = found[1], found[2], found[3]
    if subscription.lower() != SUBSCRIPTION:
        raise _refusal(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")
    if group.lower() != GROUP:
        raise _refusal(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")
    if account != request.text(b"host").partition(":")[0].partition(".")[0]:
        resource = f"The Resource 'Microsoft.DocumentDB/databaseAccounts/{account}' under resource group '{group}'"
        raise _refusal(404, "ResourceNotFound", f"{resource} was not found.")


def _unauthorized(action: str, scope: str) -> Refused:
    said = f"The client 'test' does not have authorization to perform action '{action}' over scope '{scope}'"
    return _refusal(403, "AuthorizationFailed", f"{said} or the scope is invalid.")


def _refusal(status: int, code: str, message: str) -> Refused:
    return Refused(status, message, details={"code": code})
