"""The emulation's own pages beside the service's paths: faults, metrics, test tokens, and a page for people.

They need no key: they are for whoever runs the emulator, and it listens on loopback unless told otherwise.
"""

from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import parse_qs

import orjson

from bench.cosmos_emulator.errors import Refused, bad
from bench.cosmos_emulator.management import PREFIX as MANAGEMENT_PREFIX
from bench.cosmos_emulator.management import Management
from bench.cosmos_emulator.messages import Answer, Request
from bench.cosmos_emulator.metrics import Exposition, label_of
from bench.cosmos_emulator.service import Service, refused
from bench.cosmos_emulator.tokens import DATA, LIFE_S, ROLES, Issuer

PREFIX = "/__emulation"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>hotplate cosmos-emulator</title>
<style>body{{font:16px system-ui;margin:2rem;max-width:60rem}}td,th{{padding:.2rem .8rem;text-align:right}}
td:first-child,th:first-child{{text-align:left}}</style>
<h1>An emulation of Azure Cosmos DB for NoSQL</h1><p>It is not the service. All is in memory. {saturated}</p>
<table><tr><th>container</th><th>partition</th><th>RU/s</th><th>RU admitted</th><th>429s</th></tr>{partitions}</table>
<h2>Answers</h2><table><tr><th>operation</th><th>status</th><th>answers</th><th>RU</th></tr>{answers}</table>
<p><a href="metrics">metrics</a> · <a href="faults">faults</a></p></html>"""


@dataclass(slots=True)
class Admin:
    """Answers what begins with the prefix, and hands all else on; lives as long as the emulator."""

    service: Service
    exposition: Exposition
    management: Management

    def answer(self, request: Request) -> Answer:
        """Answer a request; never raises."""
        if request.path.startswith(MANAGEMENT_PREFIX):
            return self.management.answer(request)
        if not request.path.startswith(PREFIX):
            return self.service.answer(request)
        try:
            return self._answer(request)
        except Refused as refusal:
            return refused(refusal)

    def _answer(self, request: Request) -> Answer:
        match request.method, request.path.removeprefix(PREFIX).strip("/"):
            case "GET", "":
                return Answer(200, self._page().encode(), content_type="text/html; charset=utf-8")
            case "GET", "metrics":
                return Answer(200, self.exposition.text(), content_type=TEXT)
            case "GET", "faults":
                return Answer(200, orjson.dumps(self.service.faults.told))
            case "PUT", "faults":
                self.service.faults.replace(_json(request.body), self.service.account.clock())
                return Answer(200, orjson.dumps(self.service.faults.told))
            case "DELETE", "faults":
                self.service.faults.replace([], self.service.account.clock())
                return Answer(204)
            case "GET", "token":
                issuer = self.service.keeper.issuer
                if issuer is None:
                    raise Refused(404, "Entra tokens are off: start with --entra-issuer")
                return Answer(200, orjson.dumps(_issued(issuer, request.query, self.service.account.clock())))
        raise Refused(404, f"there are {PREFIX}/, {PREFIX}/metrics, {PREFIX}/faults and {PREFIX}/token")

    def _page(self) -> str:
        partitions = "".join(
            f"<tr><td>{escape(label_of(container))}</td><td>{partition.id}</td><td>{partition.budgets[0].rate:,.0f}</td>"
            f"<td>{partition.admitted_ru:,.2f}</td><td>{partition.throttled:,}</td></tr>"
            for container in self.service.account.containers()
            for partition in container.partitions.all
        )
        counts = self.service.counts
        answers = "".join(
            f"<tr><td>{escape(operation)}</td><td>{status}</td><td>{number:,}</td>"
            f"<td>{counts.charges_ru[operation, status]:,.2f}</td></tr>"
            for (operation, status), number in sorted(counts.requests.items())
        )
        saturated_s = self.exposition.saturated_s
        said = f"<b>For {saturated_s:.0f} s the emulator itself was the limit.</b>" if saturated_s else ""
        return PAGE.format(partitions=partitions, answers=answers, saturated=said)


def _issued(issuer: Issuer, query: str, now: float) -> dict[str, Any]:
    """Issue what a query asks for; all of it may be left out.

    `scope` is what a credential asks for, `resource` what one asks for that takes this page for a managed identity's.
    """
    asked = parse_qs(query)
    roles = tuple(asked["roles"][0].split(",")) if "roles" in asked else ROLES
    if not set(roles) <= set(ROLES):
        raise bad(f"a token has no such roles: there are {', '.join(ROLES)}")
    life_s = asked.get("life_s", [str(LIFE_S)])[0]
    if not life_s.removeprefix("-").isdigit():
        raise bad("life_s is a whole number of seconds; below 0, the token has expired")
    return issuer.issue(now, int(life_s), scope=(asked.get("scope") or asked.get("resource") or [DATA])[0], roles=roles)


def _json(body: bytes) -> object:
    try:
        told: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the body is not JSON: {error.msg}") from None
    return told
