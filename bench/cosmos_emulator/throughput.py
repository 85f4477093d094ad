"""What throughput a request asks for, in its headers or in an offer; what cannot be had is refused."""

from collections.abc import Mapping
from typing import Any

import orjson

from bench.cosmos_emulator.errors import bad
from stores.cosmos.throughput import (
    AUTOSCALE_MIN,
    AUTOSCALE_STEP,
    DEFAULT_RU,
    MANUAL_MIN,
    MANUAL_STEP,
    MAX_RU,
    Throughput,
)

OFFER_HEADER = b"x-ms-offer-throughput"
AUTOSCALE_HEADER = b"x-ms-cosmos-offer-autopilot-settings"


def asked_at_birth(headers: Mapping[bytes, bytes]) -> Throughput:
    """Read the throughput of a new container from its request's headers; 400 RU/s where nothing is asked for."""
    if settings := headers.get(AUTOSCALE_HEADER):
        return _autoscale(_loaded(settings))
    manual = headers.get(OFFER_HEADER)
    if manual is None:
        return Throughput(DEFAULT_RU)
    if not manual.isdigit():
        raise bad("x-ms-offer-throughput must be a whole number of RU/s")
    return _manual(int(manual))


def asked_of_offer(content: object) -> Throughput:
    """Read the throughput of a replaced offer from its `content`."""
    if not isinstance(content, dict):
        raise bad("an offer needs a content with offerThroughput or offerAutopilotSettings")
    if settings := content.get("offerAutopilotSettings"):
        return _autoscale(settings)
    return _manual(content.get("offerThroughput"))


def _loaded(settings: bytes) -> Any:  # noqa: ANN401 -- JSON; what it is gets looked at by the caller
    try:
        return orjson.loads(settings)
    except orjson.JSONDecodeError:
        raise bad("x-ms-cosmos-offer-autopilot-settings must be JSON") from None


def _manual(ru: object) -> Throughput:
    if type(ru) is not int or not MANUAL_MIN <= ru <= MAX_RU or ru % MANUAL_STEP:
        raise bad(f"throughput must be {MANUAL_MIN} … {MAX_RU} RU/s in steps of {MANUAL_STEP}")
    return Throughput(ru)


def _autoscale(settings: object) -> Throughput:
    ru = settings.get("maxThroughput") if isinstance(settings, dict) else None
    if type(ru) is not int or not AUTOSCALE_MIN <= ru <= MAX_RU or ru % AUTOSCALE_STEP:
        raise bad(f"maxThroughput must be {AUTOSCALE_MIN} … {MAX_RU} RU/s in steps of {AUTOSCALE_STEP}")
    return Throughput(ru, autoscale=True)
