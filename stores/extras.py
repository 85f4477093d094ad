"""The extras of hotplate: the command that adds one to it, as it is installed here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hotplate.stores.errors import StoreMisused


def install_command(extra: str) -> str:
    """Return how to add an *extra*, if hotplate came from an index, from a wheel, or from a checkout."""
    import json  # noqa: PLC0415 -- only what is missing needs it
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415 -- as above

    try:
        origin = json.loads(distribution("hotplate").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # copied, and not installed
        origin = {}
    url = origin.get("url", "")
    path = unquote(urlsplit(url).path)
    if not url or (url.startswith("file:") and not Path(path).exists()):
        return f"pip install 'hotplate[{extra}]'"
    if "dir_info" in origin:
        return f"pip install {'--editable ' if origin['dir_info'].get('editable') else ''}'{path}[{extra}]'"
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"pip install 'hotplate[{extra}] @ {url}'"


@contextmanager
def extra_installed(extra: str) -> Iterator[None]:
    """Raise StoreMisused, with the command that installs the *extra*, if an import finds a module missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreMisused(f"{error.name} is not installed; install it with: {install_command(extra)}") from error
