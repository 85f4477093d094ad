"""Whether the fast lane, a compiled extension, is installed, and its creation."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hotplate.serve.api.app import Dispatcher
    from hotplate.serve.connections.answers import AnswerWriter
    from hotplate.serve.connections.lane import Lane

MODULE = "hotplate.serve.connections.lane"
# Shown at the start of a service without it.
LANE_MISSING = (
    "the fast lane is not compiled for this Python, so each GET takes several times the CPU; install a wheel for this "
    "platform, or a C compiler and hotplate again"
)


def is_compiled() -> bool:
    """Return whether the extension is there, without loading it."""
    return find_spec(MODULE) is not None


def lane_state(*, off: bool = False) -> Literal["compiled", "missing", "off"]:
    """Return which of these the fast lane is; *off* if settings turn it off."""
    if off:
        return "off"
    return "compiled" if is_compiled() else "missing"


def lane_of(dispatcher: "Dispatcher", writer: "AnswerWriter") -> "Lane | None":
    """Return the fast lane, a compiled handler of plain GETs, with the objects that the aiohttp handlers use, too.

    None if it is not compiled: then aiohttp answers all requests.
    """
    if not is_compiled():
        return None
    from hotplate.serve.connections.lane import Lane  # noqa: PLC0415 -- optional

    return Lane(
        reader=dispatcher.reader,
        guard=dispatcher.guard,
        shaper=dispatcher.shaper,
        consumed=dispatcher.consumed,
        readiness=dispatcher.readiness,
        shared_cache=dispatcher.handlers.shared_cache,
        writer=writer,
        access_log=dispatcher.access_log,
        tracer=dispatcher.tracer,
    )
