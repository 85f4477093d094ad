"""Listening sockets: a port that is reserved before anything else, shared by workers, and closed without a reset."""

import asyncio
import ctypes
import errno
import select
import socket
import struct
import time
from contextlib import suppress

# How long a port is waited for that workers of a parent which was killed just now still hold.
PORT_WAIT_S = 1.5
PORT_POLL_S = 0.02
# How long handshakes that have begun may take to be completed, and accepted, before a listener is closed.
HANDSHAKE_S = 0.1
# How long it is waited, beyond that, until all that was connected has been accepted.
ACCEPT_S = 1.0
SO_ATTACH_FILTER = 26  # of asm-generic/socket.h; the socket module does not name it
# Of each packet to a listener: drop it where, of its flags SYN and ACK, it has SYN alone.
DROP_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of the flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # where it is SYN alone,
        (0x06, 0, 0, 0),  # keep nothing of the packet,
        (0x06, 0, 0, 0xFFFFFFFF),  # else all of it
    )
)


class CannotListen(OSError):
    """The address cannot be listened on; the text says why, and what to do."""


def reserve(host: str, port: int, options: str = "", *, shared: bool = True) -> socket.socket:
    """Bind a socket whose port further workers of this service can share (SO_REUSEPORT); it does not listen yet.

    One that is not *shared* is bound alone. *options* is what the options' names begin with in what an error says.
    Raises CannotListen, for a port in use once it has been for PORT_WAIT_S.
    """
    deadline = time.monotonic() + PORT_WAIT_S
    while True:
        try:
            return _reserve(host, port, shared=shared)
        except (OSError, UnicodeError) as error:
            if getattr(error, "errno", None) != errno.EADDRINUSE or time.monotonic() > deadline:
                raise CannotListen(_why_not(error, host, port, options)) from error
        time.sleep(PORT_POLL_S)


def _reserve(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if port and shared:
        _bind(family, host, port, shared=False).close()  # so that another service's port is not shared
    return _bind(family, host, port, shared=shared)


def _why_not(error: OSError | UnicodeError, host: str, port: int, options: str = "") -> str:
    here = f"give --{options}host an address of this machine, as 127.0.0.1 or 0.0.0.0"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the host {host!r} cannot be resolved; {here}"
    start = f"{host} port {port} cannot be listened on: {error.strerror}"
    match error.errno:
        case errno.EADDRINUSE:
            variable = f"HOTPLATE_{options}PORT".upper().replace("-", "_")
            return f"{start}; choose another with --{options}port or {variable}"
        case errno.EADDRNOTAVAIL:
            return f"{start}; {here}"
        case errno.EACCES:
            return f"{start}; choose a port from 1024 on with --{options}port, or grant the right to bind this one"
    return f"{start}; check --{options}host and --{options}port"


def share(held: socket.socket) -> socket.socket:
    """Bind another socket to the port of one that is shared."""
    host, port = held.getsockname()[:2]
    return _bind(held.family, host, port, shared=True)


def _bind(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


async def accept_the_last(listener: socket.socket) -> None:
    """Wait until the running loop has accepted all that was connected to *listener*, so that it can be closed.

    The kernel resets what waits in the queue of a listener that is closed. So that nothing comes between the last
    accept and the close, packets that open a connection are dropped meanwhile: their senders repeat them within a
    second, and reach another worker, or nobody.
    """
    clock = asyncio.get_running_loop().time
    with suppress(OSError):  # not Linux: then it is as good as it gets
        program = ctypes.create_string_buffer(DROP_SYN, len(DROP_SYN))
        filters = struct.pack("HP", len(DROP_SYN) // 8, ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filters)
    await asyncio.sleep(HANDSHAKE_S)
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    deadline = clock() + ACCEPT_S
    while waiting.poll(0) and clock() < deadline:  # noqa: ASYNC110 -- the loop that accepts has no event for that
        await asyncio.sleep(0)
