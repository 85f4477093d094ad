"""The first lines of the command, `hotplate` or `python -m hotplate`: Ctrl-C ends it without a word, however early."""

import os
import sys

TYPE_CHECKING = False  # `typing` takes a while to load, in which Ctrl-C would be a traceback
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command, so Ctrl-C ends it with 130, while modules are loaded and while Python shuts down, too."""
    try:
        import signal  # noqa: PLC0415 -- loading it takes time, in which Ctrl-C would be a traceback

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, in the background
            signal.signal(signal.SIGINT, _interrupt)
        if sys.argv[1:2] == ["run"]:  # which cleans up if a scheduler ends it
            signal.signal(signal.SIGTERM, _terminate)
        try:
            from hotplate.cli.main import main as run  # noqa: PLC0415 -- as above
        except ModuleNotFoundError as error:  # a site has the client alone
            from hotplate.stores.extras import install_command  # noqa: PLC0415 -- as above

            sys.exit(f"{error.name} is not installed; install it with: {install_command('server')}")
        try:
            run()
        except SystemExit as end:
            _leave_threads_behind(end)
            raise
        finally:
            if signal.getsignal(signal.SIGINT) is _interrupt:
                signal.signal(signal.SIGINT, _end)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def _interrupt(_number: int, frame: "FrameType | None") -> None:
    """End at once while a module is loaded, because an exception there may be swallowed or printed."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _terminate(_number: int, frame: "FrameType | None") -> None:
    """Treat SIGTERM as Ctrl-C, for which an event loop has a handler of its own."""
    import signal  # noqa: PLC0415 -- as above

    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _leave_threads_behind(end: SystemExit) -> None:
    """End at once if a daemon thread lives: if it returned from C while Python shuts down, the process would abort."""
    import threading  # noqa: PLC0415 -- as above

    if any(thread.daemon for thread in threading.enumerate()):
        try:
            sys.stdout.flush()
        finally:
            os._exit(end.code if isinstance(end.code, int) else 0)


def _end(_number: int, _frame: "FrameType | None") -> None:
    """End at once: the command is done, and what is raised while Python shuts down is printed."""
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
