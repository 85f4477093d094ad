"""Threads that the process does not wait for: a long call of C, as of a solver, can be neither stopped nor hurried."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads(Executor):
    """Makes each call in a daemon thread of its own; lives as long as its results are wanted.

    Python waits at its end for the threads of a ThreadPoolExecutor, and so does `asyncio.run`; for these neither does.
    """

    def __init__(self) -> None:
        self._running = set[threading.Thread]()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 -- the base class says so
        """Call *fn* in a new thread; the future cannot be cancelled."""
        future = Future[T]()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 -- raised where the result is read
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                self._running.discard(thread)

        thread = threading.Thread(target=work, daemon=True)
        self._running.add(thread)  # before it runs, because this thread may be interrupted while it starts
        thread.start()
        return future

    def interrupt(self, timeout_s: float) -> None:
        """Raise SystemExit in the threads that are at work, each at its next line of Python, and let them clean up.

        Each is waited for, but for *timeout_s* only: one that is in a long call of C is left behind.
        """
        alive = [thread for thread in tuple(self._running) if thread.is_alive()]
        for thread in alive:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        for thread in alive:
            thread.join(timeout_s)
