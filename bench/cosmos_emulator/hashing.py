"""Where a partition key lies: the MurmurHash3 hashes of Cosmos DB, and the effective partition keys made of them.

Written from the published algorithm (Austin Appleby, public domain) on plain integers; a test holds both versions
to the Python SDK's own, which takes some fifty times as long.
"""

import struct
from collections.abc import Sequence

M64 = (1 << 64) - 1
M32 = (1 << 32) - 1
C1, C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
V2_SPAN = 1 << 126
"""Version 2 clears the two highest bits of its 128: keys lie between 00… and 3F…."""

V1_STRING_CHARS = 100
"""Version 1 hashes so many characters of a string."""


class Undefined:
    """The value of a partition key that an item does not have; there is one."""


UNDEFINED = Undefined()
Component = str | int | float | bool | Undefined | None


def encode(values: Sequence[Component], suffix: bytes = b"\xff") -> bytes:
    """Return the bytes that are hashed; they also identify the key, for equal keys have equal bytes."""
    return b"".join(_encode_one(value, suffix) for value in values)


def _encode_one(value: Component, suffix: bytes) -> bytes:
    if isinstance(value, str):
        return b"\x08" + value.encode() + suffix
    if value is None:
        return b"\x01"
    if value is False:
        return b"\x02"
    if value is True:
        return b"\x03"
    if isinstance(value, Undefined):
        return b"\x00"
    return b"\x05" + struct.pack("<d", value)


def effective_key(values: Sequence[Component], version: int) -> str:
    """Return the effective partition key in hexadecimal, as SDKs compute it; partitions are ranges of these."""
    if version == 1:
        return _effective_v1(values)
    low, high = murmur3_128(encode(values))
    return f"{(high << 64 | low) & (V2_SPAN - 1):032X}"


def boundary(part: int, parts: int, version: int) -> str:
    """Return where the *part*-th of *parts* even shares begins."""
    if part == 0:
        return ""
    if part == parts:
        return "FF"
    if version == 1:
        return _ordered(float((1 << 32) * part // parts)).hex().upper()
    return f"{V2_SPAN * part // parts:032X}"


def _effective_v1(values: Sequence[Component]) -> str:
    cut = [value[:V1_STRING_CHARS] if isinstance(value, str) else value for value in values]
    whole = [float(value & M32) if isinstance(value, int) and not isinstance(value, bool) else value for value in cut]
    hashed = _ordered(float(murmur3_32(encode(whole, b"\x00"))))
    return (hashed + b"".join(map(_ordered_component, cut))).hex().upper()


def _ordered_component(value: Component) -> bytes:
    """Encode so that the bytes sort as the values do; None writes nothing, as in the SDK."""
    if value is None:
        return b""
    if isinstance(value, str):
        encoded = value.encode()
        return b"\x08" + bytes(byte + 1 for byte in encoded[:101]) + (b"\x00" if len(encoded) <= 100 else b"")
    if isinstance(value, bool | Undefined):
        return _encode_one(value, b"")
    return _ordered(float(value))


def _ordered(number: float) -> bytes:
    (bits,) = struct.unpack("<Q", struct.pack("<d", number))
    bits = bits ^ 1 << 63 if bits < 1 << 63 else (~bits + 1) & M64
    written = bytearray((5, bits >> 56))
    bits = bits << 8 & M64
    chunk, first = 0, True
    while bits:
        if not first:
            written.append(chunk)
        first = False
        chunk = bits >> 56 | 1
        bits = bits << 7 & M64
    written.append(chunk & 0xFE)
    return bytes(written)


def _rotate(value: int, by: int) -> int:
    return (value << by | value >> 64 - by) & M64


def _mix(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & M64
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & M64
    return value ^ value >> 33


def murmur3_128(data: bytes) -> tuple[int, int]:
    """Hash *data* to 128 bits, x64 variant, seed 0; returns the low and the high half."""
    low = high = 0
    whole = len(data) & ~15
    for start in range(0, whole, 16):
        first, second = struct.unpack_from("<QQ", data, start)
        low ^= _rotate(first * C1 & M64, 31) * C2 & M64
        low = (_rotate(low, 27) + high) * 5 + 0x52DCE729 & M64
        high ^= _rotate(second * C2 & M64, 33) * C1 & M64
        high = (_rotate(high, 31) + low) * 5 + 0x38495AB5 & M64
    tail = data[whole:]
    high ^= _rotate(int.from_bytes(tail[8:], "little") * C2 & M64, 33) * C1 & M64
    low ^= _rotate(int.from_bytes(tail[:8], "little") * C1 & M64, 31) * C2 & M64
    low ^= len(data)
    high ^= len(data)
    low = low + high & M64
    high = high + low & M64
    low, high = _mix(low), _mix(high)
    low = low + high & M64
    return low, high + low & M64


def murmur3_32(data: bytes) -> int:
    """Hash *data* to 32 bits, seed 0."""
    hashed = 0
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        (chunk,) = struct.unpack_from("<I", data, start)
        hashed ^= _scramble(chunk)
        hashed = (hashed << 13 | hashed >> 19) & M32
        hashed = hashed * 5 + 0xE6546B64 & M32
    if tail := data[whole:]:
        hashed ^= _scramble(int.from_bytes(tail, "little"))
    hashed ^= len(data)
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & M32
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & M32
    return hashed ^ hashed >> 16


def _scramble(chunk: int) -> int:
    chunk = chunk * 0xCC9E2D51 & M32
    return (chunk << 15 | chunk >> 17) * 0x1B873593 & M32
