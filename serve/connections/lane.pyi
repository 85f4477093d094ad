from collections.abc import Callable
from typing import final

from hotplate.serve.connections.fast_lane import LaneDependencies

SOURCE: str
PENDING: bytes

@final
class Lane:
    def __init__(self, dependencies: LaneDependencies) -> None: ...
    def answer(self, data: bytes | memoryview, now: float, deliver: Callable[[bytes], None]) -> bytes | None: ...
