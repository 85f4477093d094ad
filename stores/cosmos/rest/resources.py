"""The database, its containers and what they may spend: asked for rarely, in the region that takes writes."""

from typing import Any

import orjson

from stores.cosmos.answers import Malformed, object_of
from stores.cosmos.driver import DEADLINE_S, DEFINITION, Offer
from stores.cosmos.errors import ContainerMissing
from stores.cosmos.offers import AUTOSCALE, MANUAL, offer_of
from stores.cosmos.rest.endpoint import Endpoint, Judge
from stores.cosmos.rest.regions import Regions
from stores.cosmos.throughput import Throughput
from stores.http1 import Response

JSON = b"content-type: application/json\r\n"
QUERY = b"content-type: application/query+json\r\nx-ms-documentdb-isquery: True\r\n"
OFFER_OF = "SELECT * FROM root r WHERE r.resource=@link"


class Resources:
    """Lives as long as its driver, and remembers nothing."""

    def __init__(self, database: str, regions: Regions, judge: Judge) -> None:
        self._database = f"dbs/{database}"
        self._name = database
        self._regions = regions
        self._judge = judge

    async def create_database(self) -> bool:
        """See `Driver`."""
        endpoint = await self._written()
        return self._made(await endpoint.ask("POST", "dbs", "", "dbs", headers=JSON, body=_json({"id": self._name})))

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        """See `Driver`."""
        endpoint = await self._written()
        body = _json({"id": container, **DEFINITION})
        headers = JSON + _asked(throughput)
        path = f"{self._database}/colls/"
        return self._made(await endpoint.ask("POST", "colls", self._database, path, headers=headers, body=body))

    async def delete_container(self, container: str) -> None:
        """See `Driver`."""
        endpoint = await self._written()
        link = f"{self._database}/colls/{container}"
        answer = await endpoint.ask("DELETE", "colls", link, f"{link}/")
        if answer.status != 204:
            error = self._judge.refused(answer)
            if not isinstance(error, ContainerMissing):
                raise error
        else:
            self._told(answer, body=False)

    async def offer(self, container: str) -> Offer | None:
        """See `Driver`."""
        found = await self._offer(container)
        if found is None:
            return None
        endpoint = await self._written()
        answer = await endpoint.ask("GET", "offers", found["id"].lower(), f"offers/{found['id']}/")
        return self._judge.understood(lambda: offer_of(self._told(answer), answer))

    async def scale(self, container: str, throughput: Throughput) -> None:
        """See `Driver`."""
        found = await self._offer(container)
        if found is None:
            return
        endpoint = await self._written()
        body = _json({**found, "content": _changed(found.get("content"), throughput)})
        answer = await endpoint.ask(
            "PUT", "offers", found["id"].lower(), f"offers/{found['id']}/", headers=JSON, body=body
        )
        self._told(answer)

    async def _offer(self, container: str) -> dict[str, Any] | None:
        """Find the offer of a container; None where the account is serverless."""
        endpoint = await self._written()
        link = f"{self._database}/colls/{container}"
        itself = self._told(await endpoint.ask("GET", "colls", link, f"{link}/")).get("_self")
        query = {"query": OFFER_OF, "parameters": [{"name": "@link", "value": itself}]}
        answer = await endpoint.ask("POST", "offers", "", "offers", headers=QUERY, body=_json(query))
        if answer.status == 400 and b"serverless" in answer.body.lower():
            self._told(answer, success=False)
            return None
        offers = self._told(answer).get("Offers")
        return self._judge.understood(lambda: _first(offers))

    async def _written(self) -> Endpoint:
        await self._regions.known(DEADLINE_S)
        return self._regions.written

    def _made(self, answer: Response) -> bool:
        if answer.status == 409:
            self._told(answer, success=False)
            return False
        self._told(answer)
        return True

    def _told(self, answer: Response, *, success: bool = True, body: bool = True) -> dict[str, Any]:
        """Return the object that an answer is, its charge counted; raises what it says where it is no success."""
        if success and answer.status not in (200, 201, 204):
            raise self._judge.refused(answer)

        def read() -> dict[str, Any]:
            self._judge.charge(answer)
            return object_of(answer) if body else {}

        return self._judge.understood(read)


def _asked(throughput: Throughput | None) -> bytes:
    """Return the header that asks for throughput; none where the account is serverless, which takes none."""
    if throughput is None:
        return b""
    if throughput.autoscale:
        return b'x-ms-cosmos-offer-autopilot-settings: {"maxThroughput": %d}\r\n' % throughput.ru
    return b"x-ms-offer-throughput: %d\r\n" % throughput.ru


def _first(offers: object) -> dict[str, Any] | None:
    if not isinstance(offers, list):
        raise Malformed("a list of offers that is none")
    if not offers:
        return None
    offer = offers[0]
    if not isinstance(offer, dict) or not isinstance(offer.get("id"), str):
        raise Malformed("an offer without id")
    return offer


def _changed(content: object, throughput: Throughput) -> dict[str, Any]:
    """Return an offer's content with other throughput of its kind, and all else as the service told it."""
    told = {name: value for name, value in content.items() if name != AUTOSCALE} if isinstance(content, dict) else {}
    return told | ({AUTOSCALE: {"maxThroughput": throughput.ru}} if throughput.autoscale else {MANUAL: throughput.ru})


def _json(told: dict[str, Any]) -> bytes:
    return orjson.dumps(told)
