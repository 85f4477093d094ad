from collections.abc import Callable
from typing import final

from hotplate.serve.access.auth import Guard
from hotplate.serve.connections.answers import AnswerWriter
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.lists.shaping import Shaper
from hotplate.serve.processes.readiness import WorkerReadiness
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.telemetry.tracing import Tracer

SOURCE: str
PENDING: bytes

@final
class Lane:
    def __init__(
        self,
        *,
        reader: TieredReader,
        guard: Guard,
        shaper: Shaper,
        consumed: Consumed | None,
        readiness: WorkerReadiness,
        shared_cache: str,
        writer: AnswerWriter,
        access_log: AccessLog | None,
        tracer: Tracer | None,
    ) -> None: ...
    def answer(self, data: bytes | memoryview, now: float, deliver: Callable[[bytes], None]) -> bytes | None: ...
