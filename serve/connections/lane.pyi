from collections.abc import Callable
from typing import final

from hotplate.serve.api.app import Dispatcher

SOURCE: str
PENDING: bytes

@final
class Lane:
    def __init__(self, dispatcher: Dispatcher) -> None: ...
    def answer(self, data: bytes | memoryview, now: float, deliver: Callable[[bytes], None]) -> bytes | None: ...
