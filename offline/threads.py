"""Daemon threads for long calls of C code that cannot be interrupted."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads(Executor):
    """Runs each call in a new daemon thread, not awaited at exit or by `asyncio.run`."""

    def __init__(self) -> None:
        self._running = set[threading.Thread]()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 -- the base class says so
        """Call *fn* in a new daemon thread, and return the future of its result; a call cannot be cancelled."""
        future = Future[T]()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 -- raised again by the future
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                self._running.discard(thread)

        thread = threading.Thread(target=work, daemon=True)
        self._running.add(thread)  # before start(), which may be interrupted
        thread.start()
        return future

    def interrupt(self, timeout_s: float) -> None:
        """Raise SystemExit in each thread at its next Python line, and wait up to *timeout_s* for each."""
        alive = [thread for thread in tuple(self._running) if thread.is_alive()]
        for thread in alive:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        for thread in alive:
            thread.join(timeout_s)
