"""Pages of the docs as the scripts that they are: what stands in their blocks of sh, in its order."""

import re
import secrets
import socket


def transcript(page: str) -> str:
    """Return all that a page, or a part of one, runs."""
    return "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def free_ports(count: int) -> list[int]:
    """Return ports whose admin listeners, a thousand above them, are free as well."""
    found = list[int]()
    for port in range(20_000 + secrets.randbelow(5_000), 30_000):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1000))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
