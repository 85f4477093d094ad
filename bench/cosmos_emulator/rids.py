"""Resource ids: what `_rid` and `_self` say, made of a count as the service makes them of bytes."""

from base64 import b64encode


def database_rid(number: int) -> str:
    """Name the *number*-th database: 4 bytes."""
    return _text(number.to_bytes(4, "big"))


def container_rid(database: int, number: int) -> str:
    """Name a container: its database's 4 bytes, and 4 of its own with the highest bit set."""
    return _text(database.to_bytes(4, "big") + (number | 1 << 31).to_bytes(4, "big"))


def document_rid(database: int, container: int, serial: int) -> str:
    """Name a document: its container's 8 bytes, and 8 of its own."""
    prefix = database.to_bytes(4, "big") + (container | 1 << 31).to_bytes(4, "big")
    return _text(prefix + serial.to_bytes(8, "little"))


def offer_rid(number: int) -> str:
    """Name an offer: 3 bytes, and so 4 characters without padding."""
    return _text(number.to_bytes(3, "big"))


def _text(raw: bytes) -> str:
    return b64encode(raw, b"+-").decode()
