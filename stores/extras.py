"""Commands that install hotplate's extras."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hotplate.stores.errors import StoreMisused


def install_command(extra: str) -> str:
    """Return the command that installs *extra* from the origin of this installation."""
    import json  # noqa: PLC0415 -- rarely needed
    from importlib.metadata import PackageNotFoundError, distribution  # noqa: PLC0415 -- as above

    try:
        origin = json.loads(distribution("hotplate").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # run from a copy
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
    """Translate ModuleNotFoundError into StoreMisused with the install command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreMisused(f"{error.name} is not installed; install it with: {install_command(extra)}") from error
