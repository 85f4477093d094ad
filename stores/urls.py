"""What the URLs of stores have in common: redaction, query parameters, and secrets, which stay out of them."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from hotplate.stores.errors import StoreMisused

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# What ends the part of a URL that may be shown; a query can hold secrets. Behind an @ it may have begun already.
END = re.compile(r"[?#]")
END_BEHIND_AT = re.compile(r"[?#&=;]")

# The hosts that are this machine.
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, in lower case; empty if it has none. Any text has an answer."""
    found = SCHEME.match(url)
    return found[1].lower() if found else ""


def redacted(url: str) -> str:
    """Return *url*, or whatever stands in its place, without what may be secret.

    Of what stands before its last @ only the scheme is shown, because an unescaped password may hold any character; of
    a query nothing.
    """
    scheme = scheme_of(url)
    start = f"{scheme}://" if scheme else ""
    _, at, shown = url[len(start) :].rpartition("@")
    return start + (END_BEHIND_AT if at else END).split(shown, maxsplit=1)[0]


def split(url: str) -> SplitResult:
    """Split the URL of a server into its parts; StoreMisused, free of secrets, if that cannot be done for sure."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text has what it complains of
        parts = None
    if parts is None or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise StoreMisused(
            f"the URL that ends in {redacted(url)} cannot be understood: write / ? # [ ] @ and % in a user, a password "
            f"or a parameter as %2F %3F %23 %5B %5D %40 and %25"
        )
    return parts


def parameters(parts: SplitResult, known: Collection[str], shown: str) -> dict[str, str]:
    """Return the parameters of a URL; StoreMisused for one that is not *known*, or given twice."""
    given = parse_qs(parts.query, keep_blank_values=True)
    for name, values in given.items():
        if name not in known:
            raise StoreMisused(
                f"{shown} takes no parameter {name!r}; {parts.scheme}:// takes {', '.join(sorted(known))}"
            )
        if len(values) > 1:
            raise StoreMisused(f"{shown} has the parameter {name!r} twice")
    return {name: values[0] for name, values in given.items()}


def certificate(given: Mapping[str, str], shown: str) -> str | None:
    """Return the parameter `ca` of a URL; StoreMisused if it names no file."""
    ca = given.get("ca")
    if ca is not None and not Path(ca).is_file():
        raise StoreMisused(f"the file {ca}, which should certify {shown}, does not exist")
    return ca


def secret(name: str, environment: Mapping[str, str]) -> str | None:
    """Return the secret that the variable *name* holds, or the file that *name*_FILE names; None where neither is."""
    if value := environment.get(name):
        return value
    if path := environment.get(f"{name}_FILE"):
        try:
            return Path(path).read_text().rstrip("\n")
        except OSError as error:
            raise StoreMisused(f"{name}_FILE names {path}, which cannot be read: {error.strerror}") from error
    return None
