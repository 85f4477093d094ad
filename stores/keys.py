"""Keys: `KIND:ID`. Ids are strings of 1 to 256 bytes of UTF-8, kept exactly as they came."""

from stores.errors import StoreMisused

USER = "user:"
ITEM = "item:"
POPULAR = "popular:"
META = "meta:"
KINDS = ("item", "meta", "popular", "user")

MANIFEST = META + "manifest"
DICTIONARY = META + "dictionary"
MAX_ID_BYTES = 256

OVERALL = ""
"""The name of the popular list that is for everybody; no segment can have it, for an id is never empty."""


def check_id(identifier: str) -> str:
    """Return *identifier*; StoreMisused unless it is 1 to 256 bytes of valid UTF-8."""
    try:
        size = len(identifier.encode())
    except UnicodeEncodeError as error:
        raise StoreMisused("an id is not valid Unicode text") from error
    if not 0 < size <= MAX_ID_BYTES:
        raise StoreMisused(f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8; this one has {size}")
    return identifier


def check_kind(kind: str) -> str:
    """Return *kind*, the part of a key before its colon; StoreMisused for one that no key has."""
    if kind not in KINDS:
        raise StoreMisused(f"{kind!r} is no kind of key; keys start with {', '.join(f'{known}:' for known in KINDS)}")
    return kind
