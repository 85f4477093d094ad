"""What the URLs of stores have in common: redaction, query parameters, and secrets, which stay out of them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, urlsplit

from stores.errors import StoreMisused


def redacted(url: str) -> str:
    """Return *url* without what may be secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else url


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
    """Return the parameter `ca` of a URL; StoreMisused where it names no file."""
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


@contextmanager
def extra_installed(extra: str) -> Iterator[None]:
    """Raise StoreMisused, with the command that installs the *extra*, where an import finds a module missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreMisused(
            f"{error.name} is not installed; install it with: pip install 'hotplate[{extra}]'"
        ) from error
