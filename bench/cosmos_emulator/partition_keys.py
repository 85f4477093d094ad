"""Partition keys: a container's definition, the values of items, and the hashes that place them on partitions.

A test holds the hashes of both versions to the Python SDK's own, which takes some fifty times as long.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import mmh3

from hotplate.bench.cosmos_emulator.errors import bad_request
from hotplate.bench.cosmos_emulator.http import parse_json

HEADER = b"x-ms-documentdb-partitionkey"

# By version; https://learn.microsoft.com/azure/cosmos-db/concepts-limits, with and without large partition keys.
MAX_BYTES = {1: 101, 2: 2048}

M64 = (1 << 64) - 1
M32 = (1 << 32) - 1

# Version 2 clears the two highest bits of its 128: effective keys lie between 00… and 3F….
V2_SPAN = 1 << 126

# Version 1 hashes so many characters of a string.
V1_STRING_CHARS = 100


class Undefined:
    """The type of `UNDEFINED`, the value of a property that an item does not have."""


UNDEFINED = Undefined()
KeyValue = str | int | float | bool | Undefined | None


# How the values are encoded that are one byte long.
SINGLES: dict[object, bytes] = {UNDEFINED: b"\x00", None: b"\x01", False: b"\x02", True: b"\x03"}


class PartitionKeyDefinition:
    """The `partitionKey` of a container, checked; it never changes."""

    __slots__ = ("_segments", "resource", "version")

    def __init__(self, resource: object) -> None:
        if not isinstance(resource, dict):
            raise bad_request("a container needs a partitionKey")
        paths = resource.get("paths")
        if resource.get("kind", "Hash") != "Hash" or not isinstance(paths, list) or len(paths) != 1:
            raise bad_request("partitionKey must be of kind Hash with one path; hierarchical keys are not emulated")
        self.version = resource.get("version", 1)
        if self.version not in (1, 2) or isinstance(self.version, bool):
            raise bad_request("partitionKey.version must be 1 or 2")
        if not isinstance(paths[0], str) or not paths[0].startswith("/") or not paths[0].strip("/"):
            raise bad_request("a path of a partition key begins with / and names a property")
        self._segments = tuple(segment.strip('"') for segment in paths[0].strip("/").split("/"))
        self.resource = {"paths": paths, "kind": "Hash", "version": self.version}

    def of_item(self, item: Mapping[str, Any]) -> KeyValue:
        """Return the value of the key in an item."""
        value: Any = item
        for segment in self._segments:
            if not isinstance(value, dict) or segment not in value:
                return UNDEFINED
            value = value[segment]
        return self._checked(value)

    def of_header(self, header: bytes | None) -> KeyValue:
        """Return the value that a request's header carries as a JSON list of one."""
        if header is None:
            raise bad_request("the header x-ms-documentdb-partitionkey is missing")
        values = parse_json(header, "x-ms-documentdb-partitionkey")
        if not isinstance(values, list) or len(values) > 1:
            raise bad_request("x-ms-documentdb-partitionkey must be a list of one value")
        if not values or values[0] == {}:
            return UNDEFINED
        return self._checked(values[0])

    def _checked(self, value: object) -> KeyValue:
        if isinstance(value, str):
            if len(value.encode()) > MAX_BYTES[self.version]:
                raise bad_request(f"a partition key has at most {MAX_BYTES[self.version]} bytes")
            return value
        if value is None or isinstance(value, bool | int | float):
            return value
        raise bad_request("a partition key is a string, a number, a boolean or null")

    def effective(self, value: KeyValue) -> str:
        """Return the effective partition key of a value."""
        return effective_key([value], self.version)


def encode(value: KeyValue, suffix: bytes = b"\xff") -> bytes:
    """Return the bytes that are hashed; they also identify the key, for equal keys have equal bytes."""
    if isinstance(value, str):
        return b"\x08" + value.encode() + suffix
    if isinstance(value, bool | Undefined | None):
        return SINGLES[value]
    return b"\x05" + struct.pack("<d", value)


def effective_key(values: Sequence[KeyValue], version: int) -> str:
    """Return the effective partition key in hexadecimal, as SDKs compute it; partitions are ranges of these."""
    if version == 1:
        return _effective_v1(values)
    low, high = mmh3.hash64(b"".join(map(encode, values)), signed=False)
    return f"{(high << 64 | low) & (V2_SPAN - 1):032X}"


def boundary(part: int, parts: int, version: int) -> str:
    """Return the lower bound of the *part*-th of *parts* even ranges of effective partition keys."""
    if part == 0:
        return ""
    if part == parts:
        return "FF"
    if version == 1:
        return _ordered_number(float((1 << 32) * part // parts)).hex().upper()
    return f"{V2_SPAN * part // parts:032X}"


def _effective_v1(values: Sequence[KeyValue]) -> str:
    cut = [value[:V1_STRING_CHARS] if isinstance(value, str) else value for value in values]
    numbers = [float(value & M32) if isinstance(value, int) and not isinstance(value, bool) else value for value in cut]
    hashed = _ordered_number(float(mmh3.hash(b"".join(encode(value, b"\x00") for value in numbers), signed=False)))
    return (hashed + b"".join(map(_ordered, cut))).hex().upper()


def _ordered(value: KeyValue) -> bytes:
    """Encode to bytes that sort as the values do; None writes nothing, as in the SDK."""
    if value is None:
        return b""
    if isinstance(value, str):
        encoded = value.encode()
        return b"\x08" + bytes(byte + 1 for byte in encoded[:101]) + (b"\x00" if len(encoded) <= 100 else b"")
    if isinstance(value, bool | Undefined):
        return encode(value, b"")
    return _ordered_number(float(value))


def _ordered_number(number: float) -> bytes:
    (bits,) = struct.unpack("<Q", struct.pack("<d", number))
    bits = bits ^ 1 << 63 if bits < 1 << 63 else (~bits + 1) & M64
    groups = [bits >> shift & 0x7F for shift in range(49, -1, -7)]
    while len(groups) > 1 and not groups[-1]:
        groups.pop()
    return bytes([5, bits >> 56, *(group << 1 | 1 for group in groups[:-1]), groups[-1] << 1])
