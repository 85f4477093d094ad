"""The emulator's own pages, below `/__emulation`: faults, metrics, test tokens, and a page for people.

They need no key: they are for whoever runs the emulator, and it listens on loopback by default.
"""

from html import escape
from typing import Any
from urllib.parse import parse_qs

import orjson

from bench.cosmos_emulator.arm import PREFIX as ARM_PREFIX
from bench.cosmos_emulator.arm import ResourceManager
from bench.cosmos_emulator.auth import DATA_AUDIENCE, ROLES, TOKEN_LIFE_S, Issuer
from bench.cosmos_emulator.errors import HttpError, bad_request
from bench.cosmos_emulator.http import Request, Response, error_response, parse_json
from bench.cosmos_emulator.metrics import Metrics, Monitor, label_of
from bench.cosmos_emulator.service import Service

PREFIX = "/__emulation"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>hotplate cosmos-emulator</title>
<style>body{{font:16px system-ui;margin:2rem;max-width:60rem}}td,th{{padding:.2rem .8rem;text-align:right}}
td:first-child,th:first-child{{text-align:left}}</style>
<h1>An emulation of Azure Cosmos DB for NoSQL</h1><p>It is not the service. All is in memory. {saturated}</p>
<table><tr><th>container</th><th>partition</th><th>RU/s</th><th>RU admitted</th><th>429s</th></tr>{partitions}</table>
<h2>Responses</h2><table><tr><th>operation</th><th>status</th><th>responses</th><th>RU</th></tr>{responses}</table>
<p><a href="metrics">metrics</a> · <a href="faults">faults</a></p></html>"""


class Admin:
    """Answers what begins with the prefix, and passes all else on; lives as long as the emulator."""

    def __init__(self, service: Service, monitor: Monitor) -> None:
        self._service = service
        self._monitor = monitor
        self._metrics = Metrics(service.account, service.counts, monitor)
        self._arm = ResourceManager(service)

    def answer(self, request: Request) -> Response:
        """Return the response to a request; never raises."""
        if request.path.startswith(ARM_PREFIX):
            return self._arm.answer(request)
        if not request.path.startswith(PREFIX):
            return self._service.answer(request)
        try:
            return self._page(request)
        except HttpError as error:
            return error_response(error)

    def _page(self, request: Request) -> Response:
        service, now = self._service, self._service.account.clock()
        match request.method, request.path.removeprefix(PREFIX).strip("/"):
            case "GET", "":
                return Response(200, self._overview().encode(), content_type="text/html; charset=utf-8")
            case "GET", "metrics":
                return Response(200, self._metrics.text(), content_type=TEXT)
            case "GET", "faults":
                return Response(200, orjson.dumps(service.faults.resource))
            case "PUT", "faults":
                service.faults.replace(parse_json(request.body), now)
                return Response(200, orjson.dumps(service.faults.resource))
            case "DELETE", "faults":
                service.faults.replace([], now)
                return Response(204)
            case "GET", "token":
                issuer = service.authenticator.issuer
                if issuer is None:
                    raise HttpError(404, "Entra tokens are off: start with --entra-issuer")
                return Response(200, orjson.dumps(_issue(issuer, request.query, now)))
        raise HttpError(404, f"there are {PREFIX}/, {PREFIX}/metrics, {PREFIX}/faults and {PREFIX}/token")

    def _overview(self) -> str:
        partitions = "".join(
            f"<tr><td>{escape(label_of(container))}</td><td>{partition.id}</td><td>{partition.budgets[0].rate:,.0f}</td>"
            f"<td>{partition.admitted_ru:,.2f}</td><td>{partition.throttled:,}</td></tr>"
            for container in self._service.account.containers()
            for partition in container.partitions.all
        )
        counts = self._service.counts
        responses = "".join(
            f"<tr><td>{escape(operation)}</td><td>{status}</td><td>{number:,}</td>"
            f"<td>{counts.charges_ru[operation, status]:,.2f}</td></tr>"
            for (operation, status), number in sorted(counts.requests.items())
        )
        saturated_s = self._monitor.saturated_s
        saturated = f"<b>For {saturated_s:.0f} s the emulator itself was the limit.</b>" if saturated_s else ""
        return PAGE.format(partitions=partitions, responses=responses, saturated=saturated)


def _issue(issuer: Issuer, query: str, now: float) -> dict[str, Any]:
    """Issue the token that a query string describes; each parameter is optional.

    Credentials send `scope`; callers that take this page for a managed identity's endpoint send `resource`.
    """
    parameters = parse_qs(query)
    roles = tuple(parameters["roles"][0].split(",")) if "roles" in parameters else ROLES
    if not set(roles) <= set(ROLES):
        raise bad_request(f"a token has no such roles: there are {', '.join(ROLES)}")
    life_s = parameters.get("life_s", [str(TOKEN_LIFE_S)])[0]
    if not life_s.removeprefix("-").isdigit():
        raise bad_request("life_s is a whole number of seconds; below 0, the token has expired")
    scope = (parameters.get("scope") or parameters.get("resource") or [DATA_AUDIENCE])[0]
    return issuer.issue(now, int(life_s), scope=scope, roles=roles)
