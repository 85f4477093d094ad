"""Commands that install hotplate's extras."""

from collections.abc import Iterator
from contextlib import contextmanager

from hotplate.stores.errors import StoreMisused


def install_command(extra: str) -> str:
    """Return the command that installs *extra*; pip adds it to the installed hotplate, wherever that came from."""
    return f"pip install 'hotplate[{extra}]'"


@contextmanager
def extra_installed(extra: str) -> Iterator[None]:
    """Translate ModuleNotFoundError into StoreMisused with the install command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise StoreMisused(f"{error.name} is not installed; install it with: {install_command(extra)}") from error
