"""How large a list is: as JSON, compressed, as an item in Cosmos DB, and as a row in Redis."""

from math import ceil

from bench.planner.figures import Book
from bench.planner.inputs import Inputs

ITEM_BYTES = len('{"id":"","score":0.1234}')
TITLE_BYTES = len(',"title":""')
SEPARATOR_BYTES = len(",\n")
QUOTES = 6
TITLE_QUOTES = 4
SKELETON_BYTES = len('{"id":"user.","t":""}')
REDIS_ROW_BYTES, REDIS_ALLOCATED = 80, 1.08
"""As `stores.redis.memory` has them, which needs the extra `redis`; a test holds the two together."""

REDIS_HEAD_BYTES = len("hotplate:20261120T064200Z-7f3a:")
KEY_BYTES = len("user:")


def base64_bytes(size: float, *, padded: bool) -> float:
    """Return how long *size* bytes are in base64."""
    return ceil(size / 3) * 4 if padded else ceil(size * 4 / 3)


def work_out_sizes(book: Book, inputs: Inputs) -> None:
    """Work out the size of a list in each of its forms."""
    titled = inputs.title_chars > 0
    title = f" + {TITLE_BYTES} + title_chars" if titled else ""
    listed = (
        ITEM_BYTES + inputs.item_id_chars + (TITLE_BYTES + inputs.title_chars if titled else 0)
    ) * inputs.list_length
    json_bytes = book.work(
        "json_bytes",
        listed + SEPARATOR_BYTES * (inputs.list_length - 1),
        "bytes",
        f"list_length * ({ITEM_BYTES} + item_id_chars{title}) + {SEPARATOR_BYTES} * (list_length - 1)",
    )
    if inputs.list_bytes is not None:
        stored = book.work("stored_bytes", inputs.list_bytes, "bytes", "list_bytes")
    elif inputs.encoding == "zstd":
        stored = book.work("stored_bytes", json_bytes * inputs.zstd_share, "bytes", "json_bytes * zstd_share")
    else:
        stored = book.work("stored_bytes", json_bytes, "bytes", "json_bytes")
    _cosmos_item(book, inputs, stored)
    book.work(
        "redis_row_bytes",
        (stored + KEY_BYTES + inputs.user_id_chars + REDIS_HEAD_BYTES + REDIS_ROW_BYTES) * REDIS_ALLOCATED,
        "bytes",
        f"(stored_bytes + {KEY_BYTES} + user_id_chars + {REDIS_HEAD_BYTES} + {REDIS_ROW_BYTES}) * {REDIS_ALLOCATED}",
        source="the key, its prefix and release, and what Redis 7 keeps beside it: within -3 and +13 % of used_memory",
    )


def _cosmos_item(book: Book, inputs: Inputs, stored: float) -> None:
    """Work out the item `{"id":"user.ID","t":"…"}`, or "b" with base64 where the list is compressed."""
    identifier = base64_bytes(inputs.user_id_chars, padded=False)
    if inputs.encoding == "zstd":
        book.work(
            "text_bytes", base64_bytes(stored, padded=True), "bytes", "ceil(stored_bytes / 3) * 4", source="base64"
        )
    else:
        quotes = QUOTES + (TITLE_QUOTES if inputs.title_chars > 0 else 0)
        book.work(
            "text_bytes",
            stored + quotes * inputs.list_length + inputs.list_length - 1,
            "bytes",
            f"stored_bytes + {quotes} * list_length + list_length - 1",
            source="JSON in JSON: a backslash for each quote and each end of line",
        )
    text = float(book.figures()["text_bytes"].value or 0)
    book.work(
        "item_bytes",
        SKELETON_BYTES + identifier + text + inputs.system_bytes,
        "bytes",
        f"{SKELETON_BYTES} + ceil(user_id_chars * 4 / 3) + text_bytes + system_bytes",
        source='an item {"id":"user.ID","t":"…"} with the id in base64url',
    )
