"""A search for secrets in all that a service and its tools leave behind."""

from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote


def files_in(folder: Path) -> list[bytes]:
    """Return what the files in a folder hold, but for private keys, whose place that is."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".key"]


def leaked(secrets: Mapping[str, str], left: Iterable[bytes]) -> list[str]:
    """Return the names of the secrets that are found in what is left, as they are, percent-encoded or in base64."""
    everything = b"\n".join(left)
    return [
        name
        for name, secret in secrets.items()
        if any(
            form in everything
            for form in (secret.encode(), quote(secret, safe="").encode(), b64encode(secret.encode()))
        )
    ]
