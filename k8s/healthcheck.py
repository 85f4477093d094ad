"""Ends with 0 if the service of this container answers /livez, for engines that have no probe of their own.

The variable HOTPLATE_HEALTH_PORT sets the port, of the service and of this check, which cannot see `--health-port`.
"""

import http.client
import os
import sys


def main() -> int:
    """Request it once, of the health listener."""
    port = int(os.environ.get("HOTPLATE_HEALTH_PORT", "8091"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return int(connection.getresponse().status != 200)
    except (OSError, http.client.HTTPException) as error:
        print(f"Nothing answers on 127.0.0.1:{port}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
