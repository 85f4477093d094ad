"""What schemathesis must know beyond the document: the bounds that JSON Schema has no words for, tested elsewhere."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import schemathesis

from hotplate.base.recommendations import ITEM_FIELDS
from hotplate.serve.api.parameters import MAX_BATCH_ITEMS
from hotplate.serve.connections.framing import MAX_BODY_BYTES
from hotplate.serve.lists.options import ALL_FIELDS
from hotplate.serve.settings import Limits
from hotplate.stores.encoding import MAX_ID_BYTES


def fits(value: object) -> bool:
    """Return whether no string has too many bytes, which it may have without having too many characters."""
    if isinstance(value, str):
        ids = [value, *value.split(",")]  # a list comes out of a query as one string
        return all(
            len(identifier) > MAX_ID_BYTES or len(identifier.encode(errors="replace")) <= MAX_ID_BYTES
            for identifier in ids
        )
    if isinstance(value, Mapping):
        return all(map(fits, value.values()))
    return not isinstance(value, list) or all(map(fits, value))


def is_small(body: object) -> bool:
    """Return whether a body has no more bytes, and requests no more items, than one request may."""
    if not isinstance(body, Mapping | list):
        return True
    users, n = (body.get("users"), body.get("n")) if isinstance(body, Mapping) else (None, None)
    if isinstance(users, list) and isinstance(n, int | float) and len(users) * n > MAX_BATCH_ITEMS:
        return False
    return len(json.dumps(body, default=str)) <= MAX_BODY_BYTES


def is_short(case: schemathesis.Case[Any]) -> bool:
    """Return whether a path and its query surely leave room for the rest of a header."""
    return len(quote(f"{case.path_parameters}{case.query}")) <= Limits().header_bytes // 2


def names_attributes(options: Mapping[str, Any]) -> bool:
    """Return whether options of a list name attributes of items."""
    fields = str(options.get("fields", ALL_FIELDS)).split(",")
    conditions = [options.get(name) for name in ("where", "else", "per")]
    return any(conditions) or bool({*fields[1:]}.difference(ITEM_FIELDS))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    del context  # schemathesis passes it by this name
    if any("{" in str(value) for value in (case.query or {}).values()):
        return False  # an object becomes text in a query, and any text may be an id
    if any(isinstance(part, Mapping) and names_attributes(part) for part in (case.query, case.body)):
        return False  # only a release knows whether it has them
    return all(map(fits, (case.path_parameters, case.query, case.body))) and is_small(case.body) and is_short(case)
