"""What a request asks for, taken from its path, query and body, or refused with a sentence."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import orjson

from serve.problems import bad_parameter
from serve.settings import DEFAULT_N, MAX_N, MAX_USERS
from stores.errors import StoreMisused
from stores.keys import check_id


def path_id(raw: str, what: str) -> str:
    """Decode one percent-encoded path segment into an id; *what* names it in the sentence of a refusal."""
    if "%" in raw:
        try:
            raw = unquote_to_bytes(raw).decode()
        except UnicodeError:
            raise bad_parameter(f"the {what} id in the path is not percent-encoded UTF-8") from None
    return _checked(raw, f"the {what} id in the path")


def query_of(raw: str) -> Mapping[str, str]:
    """Parse a query string; of a name given twice the first counts."""
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise bad_parameter("the query is not percent-encoded UTF-8 of at most 20 fields") from None
    return dict(reversed(pairs))


def count_in(query: Mapping[str, str]) -> int:
    """Read `n`, 1 … MAX_N."""
    given = query.get("n")
    if given is None:
        return DEFAULT_N
    if not (given.isascii() and given.isdecimal() and len(given) <= 9 and 1 <= int(given) <= MAX_N):
        raise bad_parameter(f"n must be a whole number from 1 to {MAX_N}, not {given[:40]!r}")
    return int(given)


def batch_in(body: bytes) -> tuple[list[str], int]:
    """Read `{"users": […], "n": …}`: the users, in order, and n."""
    try:
        asked: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_parameter(f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("users"), list):
        raise bad_parameter('the body must be an object with a list of users, as {"users": ["42"], "n": 10}')
    users, n = asked["users"], asked.get("n", DEFAULT_N)
    if len(users) > MAX_USERS:
        raise bad_parameter(f"one request names at most {MAX_USERS} users, not {len(users)}; send several requests")
    if type(n) is not int or not 1 <= n <= MAX_N:
        raise bad_parameter(f"n must be a whole number from 1 to {MAX_N}, not {str(n)[:40]!r}")
    for place, user in enumerate(users):
        if not isinstance(user, str):
            raise bad_parameter(f"users[{place}] is not a string")
        _checked(user, f"users[{place}]")
    return users, n


def _checked(identifier: str, what: str) -> str:
    try:
        return check_id(identifier)
    except StoreMisused as error:
        raise bad_parameter(f"{what} cannot be used: {error}") from None
