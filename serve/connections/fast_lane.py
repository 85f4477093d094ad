"""The fast lane, a compiled extension: whether it is installed, and the objects that it uses."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from hotplate.serve.access.auth import Guard
from hotplate.serve.api.app import Dispatcher
from hotplate.serve.api.handlers import Handlers
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.reader import TieredReader
from hotplate.serve.shaping import Shaper
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.telemetry.spans import Tracer

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

MODULE = "hotplate.serve.connections.lane"
# Shown at the start of a service without it.
LANE_MISSING = (
    "the fast lane is not compiled for this Python, so each GET takes several times the CPU; install a wheel for this "
    "platform, or a C compiler and hotplate again"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneDependencies:
    """Objects that the fast lane shares with the aiohttp handlers.

    What the lane keeps of them must be constant or a `generation.Policy`.
    """

    reader: TieredReader
    guard: Guard
    shaper: Shaper
    consumed: Consumed | None
    handlers: Handlers
    writer: AnswerWriter
    access_log: AccessLog | None
    tracer: Tracer | None


def is_compiled() -> bool:
    """Return whether the extension is there, without loading it."""
    return find_spec(MODULE) is not None


def lane_state(*, off: bool = False) -> Literal["compiled", "missing", "off"]:
    """Return which of these the fast lane is; *off* if settings turn it off."""
    if off:
        return "off"
    return "compiled" if is_compiled() else "missing"


def lane_of(dispatcher: Dispatcher, writer: AnswerWriter) -> "Lane | None":
    """Return a fast lane; None if it is not compiled, and aiohttp answers all requests."""
    if not is_compiled():
        return None
    from hotplate.serve.connections.lane import Lane  # noqa: PLC0415 -- optional

    dependencies = LaneDependencies(
        reader=dispatcher.reader,
        guard=dispatcher.guard,
        shaper=dispatcher.shaper,
        consumed=dispatcher.consumed,
        handlers=dispatcher.handlers,
        writer=writer,
        access_log=dispatcher.access_log,
        tracer=dispatcher.tracer,
    )
    return Lane(dependencies)
