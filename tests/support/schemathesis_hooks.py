"""What schemathesis must know beyond the document: JSON Schema counts characters, where an id is 256 bytes at most."""

from collections.abc import Mapping
from typing import Any

import schemathesis

from stores.keys import MAX_ID_BYTES


def fits(value: object) -> bool:
    """Return whether the strings in a value have too many characters, too, where they have too many bytes."""
    if isinstance(value, str):
        return len(value) > MAX_ID_BYTES or len(value.encode(errors="replace")) <= MAX_ID_BYTES
    if isinstance(value, Mapping):
        return all(map(fits, value.values()))
    return not isinstance(value, list) or all(map(fits, value))


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    del context  # schemathesis passes it by this name
    return all(map(fits, (case.path_parameters, case.query, case.body)))
