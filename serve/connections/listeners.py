"""Listening sockets: a port that is reserved before anything else, and shared by workers."""

import errno
import socket
import time

# How long a port is waited for that workers of a parent which was killed just now still hold.
PORT_WAIT_S = 1.5
PORT_POLL_S = 0.02
# How much of an answer the kernel takes beyond what it has sent. The rest of what a client does not read stays in this
# process, which counts and times it. Without this, each such client could hold 4 MB of the kernel's memory.
UNSENT_BYTES = 65_536


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
        _bind(family, host, port, shared=False).close()  # another service's port must not be shared
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
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # and so each connection
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener
