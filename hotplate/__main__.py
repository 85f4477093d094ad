"""The first lines of the command, `hotplate` or `python -m hotplate`: Ctrl-C ends it without a word, however early."""

import os
import signal
import sys

TYPE_CHECKING = False  # `typing` takes a while to load
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Run the command, so that Ctrl-C, and for `run` SIGTERM, ends it with 130, or at once where nothing has begun."""
    if heard := signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exception while modules are loaded would be printed
    try:
        from hotplate.cli.main import main as run  # noqa: PLC0415 -- loading it takes a while
    except ModuleNotFoundError as error:  # a site has the client alone
        from hotplate.stores.extras import install_command  # noqa: PLC0415 -- as above

        sys.exit(f"{error.name} is not installed; install it with: {install_command('server')}")
    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1:2] == ["run"]:  # which cleans up if a scheduler ends it
        signal.signal(signal.SIGTERM, _terminate)
    code: object = INTERRUPTED
    try:
        run()
    except SystemExit as end:
        code = end.code
        if code != INTERRUPTED:
            raise
    except KeyboardInterrupt:
        pass
    finally:
        if heard:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout.flush()
    os._exit(INTERRUPTED)  # a thread may be in a call of C: if that returned while Python shuts down, it would abort


def _terminate(_number: int, frame: "FrameType | None") -> None:
    """Do what Ctrl-C does at this moment, also where it is ignored itself."""
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


if __name__ == "__main__":
    main()
