"""Ends with 0 where the service of this container answers /livez, for engines that have no probe of their own."""

import http.client
import os
import ssl
import sys


def main() -> int:
    """Ask once; the certificate is for whoever comes by name, and this comes by address."""
    port = int(os.environ.get("HOTPLATE_PORT", "8080"))
    connection: http.client.HTTPConnection
    if os.environ.get("HOTPLATE_TLS_CERT"):
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 -- as above
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as error:
        print(f"Nothing answers on 127.0.0.1:{port}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
