"""The proxy of an outgoing request, by the variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY.

They are read as by curl and Python's requests. This machine is reached directly.
"""

import os
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy."""

    host: str
    port: int
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    """Name and password."""

    @property
    def url(self) -> str:
        """Return its URL, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def tunnel_request(self, host: str, port: int) -> bytes:
        """Return the request for a tunnel to a server."""
        server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {server} HTTP/1.1", f"Host: {server}"]
        if self.credentials is not None:
            encoded = b64encode(":".join(self.credentials).encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {encoded}")
        return "\r\n".join((*lines, "", "")).encode()


def proxy_for(url: str) -> Proxy | None:
    """Return the proxy that the environment names for requests to *url*; None for a direct connection.

    Raises ValueError for a variable that is not the URL of an HTTP proxy; its value, which may have a password, is not
    in the message.
    """
    if not any(name.lower() in {"http_proxy", "https_proxy"} for name in os.environ):
        return None

    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415 -- slow to import

    parts = urlsplit(url)
    host = parts.hostname or ""
    server = host if parts.port is None else f"{host}:{parts.port}"
    proxies = getproxies_environment()
    value = proxies.get(parts.scheme)
    if not value or host in LOCAL_HOSTS or proxy_bypass(server, proxies):  # which reads NO_PROXY
        return None

    invalid = ValueError(f"{parts.scheme.upper()}_PROXY is not the URL of a proxy; write http://HOST:PORT")
    try:
        proxy = urlsplit(value if "://" in value else f"http://{value}")
        port = proxy.port or 80
    except ValueError:  # it quotes a part of the value
        raise invalid from None
    if proxy.scheme != "http" or not proxy.hostname or not proxy.hostname.isascii():
        raise invalid

    credentials = None
    if proxy.username is not None:
        credentials = unquote(proxy.username), unquote(proxy.password or "")
    return Proxy(proxy.hostname, port, credentials)
