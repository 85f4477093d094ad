"""Pages of the docs as the scripts that they are: what stands in their blocks of sh, in its order."""

import re

from hotplate.bench.process import claim_port, free_port


def transcript(page: str) -> str:
    """Return all that a page, or a part of one, runs."""
    return "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def free_ports(count: int) -> list[int]:
    """Return ports whose admin listeners, a thousand above them, are free as well."""
    found = list[int]()
    while len(found) < count:
        port = free_port()
        if claim_port(port + 1000):
            found.append(port)
    return found
