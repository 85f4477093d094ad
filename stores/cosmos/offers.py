"""Offers, as the service tells them: what a container may spend, how low that may go, whether it is being changed."""

from typing import Any

from stores.cosmos.answers import Malformed
from stores.cosmos.driver import Offer
from stores.cosmos.throughput import Throughput, minimum_ru
from stores.http1 import Response

MANUAL, AUTOSCALE = "offerThroughput", "offerAutopilotSettings"


def offer_of(told: dict[str, Any], answer: Response) -> Offer:
    """Understand an offer and the headers that came with it. Raises Malformed."""
    content = told.get("content")
    if not isinstance(content, dict):
        raise Malformed("an offer without content")
    settings = content.get(AUTOSCALE)
    ru = settings.get("maxThroughput") if isinstance(settings, dict) else content.get(MANUAL)
    if type(ru) is not int:
        raise Malformed("an offer without throughput")
    throughput = Throughput(ru, autoscale=isinstance(settings, dict))
    pending = (answer.header(b"x-ms-offer-replace-pending") or b"").lower() == b"true"
    return Offer(throughput, _least(content, answer, throughput), pending)


def _least(content: dict[str, Any], answer: Response, throughput: Throughput) -> int:
    """Return the least throughput that an offer can be set to, told in one of two places, or worked out."""
    parameters = content.get("offerMinimumThroughputParameters")
    told = parameters.get("minThroughput") if isinstance(parameters, dict) else None
    if type(told) is int:
        return told
    header = answer.header(b"x-ms-cosmos-min-throughput") or b""
    return int(header) if header.isdigit() else minimum_ru(throughput.ru, 0, autoscale=throughput.autoscale)
