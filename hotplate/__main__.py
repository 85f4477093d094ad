"""Entry point of `hotplate` and `python -m hotplate`; Ctrl-C ends it without a traceback at any time."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` loads enum, and Ctrl-C then prints a traceback
import os
import sys

from hotplate.base.exit_codes import INTERRUPTED, MISUSED

TYPE_CHECKING = False  # importing `typing` is slow
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def main() -> None:
    """Run the command; Ctrl-C, and SIGTERM unless the verb handles it, end it with 130."""
    # A shell starts a command in the background with SIGINT ignored, which stays so.
    hears_ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if hears_ctrl_c:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # KeyboardInterrupt during imports would be printed
    try:
        from hotplate.cli.main import main as run_verb  # noqa: PLC0415 -- slow to load
    except ModuleNotFoundError as error:  # only the client is installed
        _print_install_hint(error)
        sys.exit(MISUSED)

    cleans_up = sys.argv[1:2] not in (["serve"], ["demo"], ["cosmos-emulator"], ["bench"])  # which handle SIGTERM
    former = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if hears_ctrl_c:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if cleans_up:
                signal.signal(signal.SIGTERM, _terminate)
            run_verb()
        finally:
            # From here on, a signal ends the process at once: KeyboardInterrupt would not be caught.
            if cleans_up:
                signal.signal(signal.SIGTERM, former)
            if hears_ctrl_c:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
    except SystemExit as exiting:
        if exiting.code != INTERRUPTED:
            raise
    except KeyboardInterrupt:
        pass

    _exit_interrupted()


def _print_install_hint(error: ModuleNotFoundError) -> None:
    """Print which extra of hotplate installs a module, as text or JSON; raise *error* if none does."""
    import json  # noqa: PLC0415 -- slow to load

    from hotplate.base.extras import extra_of_verb, install_hint  # noqa: PLC0415 -- as above
    from hotplate.cli import wants_json  # noqa: PLC0415 -- as above

    hint = install_hint(error, extra_of_verb(sys.argv[1:]))
    if hint is None:
        raise error
    if wants_json():
        hint = json.dumps({"error": hint, "kind": type(error).__name__})
    if sys.stderr is not None:
        sys.stderr.write(hint + "\n")


def _exit_interrupted() -> "NoReturn":
    """Exit at once: a thread that returns from C code during an ordinary exit would abort the process."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    finally:  # also if the reader of the output has ended
        os._exit(INTERRUPTED)


def _terminate(_number: int, frame: "FrameType | None") -> None:
    """Act as Ctrl-C, even if that is ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        handler = signal.default_int_handler
    handler(signal.SIGINT, frame)


if __name__ == "__main__":
    main()
