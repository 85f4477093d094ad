"""What answers of the service hold; whatever is cut short or makes no sense is refused, never taken for data."""

from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from stores.cosmos.driver import Item
from stores.cosmos.errors import Refusal
from stores.http1 import Response

CHARGE = b"x-ms-request-charge"
MOST_RU = 1e6
"""No answer costs more; a sum that is kept for ever must not meet an infinity."""

OWNER_MISSING = 1003
MEANT = (404, 409, 412)
"""Statuses that say how things are, not that something failed."""


class Malformed(ValueError):
    """An answer makes no sense; its text ends the sentence `… sent`."""


def charge_ru(answer: Response) -> float:
    """Return what an answer cost; 0 where it does not say. Raises Malformed."""
    told = answer.header(CHARGE)
    if told is None:
        return 0.0
    try:
        ru = float(told)
    except ValueError:
        ru = -1.0
    if not 0.0 <= ru <= MOST_RU:
        raise Malformed("a charge that is no number of request units")
    return ru


def item_of(answer: Response, name: str) -> Item:
    """Return the item that was asked for by *name*. Raises Malformed."""
    item = object_of(answer)
    if item.get("id") != name:
        raise Malformed(f"another item than {name}")
    return item


def object_of(answer: Response) -> dict[str, Any]:
    """Return the JSON object that an answer is. Raises Malformed."""
    try:
        told = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        raise Malformed("something that is not JSON") from None
    if not isinstance(told, dict):
        raise Malformed("JSON that is no object")
    return told


def is_absent(answer: Response) -> bool:
    """Tell whether the item, and nothing that holds it, is not there. Raises Malformed."""
    return answer.status == 404 and refusal_of(answer, 0.0).substatus == 0


def refusal_of(answer: Response, asked_at: float) -> Refusal:
    """Return what an answer that is no success says; a failure may be told by whatever stands before the service.

    Raises Malformed where a status that would be taken for data (`MEANT`) is not the service's own.
    """
    try:
        message = _message(answer)
    except Malformed:
        if answer.status in MEANT:
            raise
        message = "no reason given"
    substatus = _whole(answer.header(b"x-ms-substatus")) or 0
    if answer.status == 404 and substatus == 0 and "Owner resource does not exist" in message:
        substatus = OWNER_MISSING
    retry_after_ms = _whole(answer.header(b"x-ms-retry-after-ms"))
    told_at = date_of(answer)
    return Refusal(
        answer.status,
        substatus,
        message,
        None if retry_after_ms is None else retry_after_ms / 1000,
        0.0 if told_at is None else asked_at - told_at,
    )


def _message(answer: Response) -> str:
    told = object_of(answer)
    message = told.get("message")
    if "code" not in told or not isinstance(message, str):
        raise Malformed(f"status {answer.status} without a reason")
    return message


def date_of(answer: Response) -> float | None:
    """Return the service's clock in seconds, as the answer tells it; None where it does not."""
    told = answer.header(b"date")
    if told is None:
        return None
    try:
        return parsedate_to_datetime(told.decode("latin-1")).timestamp()
    except ValueError:
        return None


def _whole(told: bytes | None) -> int | None:
    return int(told[:9]) if told is not None and told.isdigit() else None
