"""The signals of a service: what its parent waits for, and what its children take of them.

They are blocked from before the first fork on. A child takes them once it has handlers of its own. The parent takes
them only while it waits, so none of its work is interrupted.
"""

import selectors
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# A terminal that goes away sends SIGHUP to all of its processes.
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
WATCHED = {signal.SIGCHLD, *STOPS}


class SignalQueue:
    """The signals that the parent has caught, as what a selector can wait for; lives as long as the parent."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        """Block the signals, and let *selector* see those that `waiting` lets through."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in WATCHED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is with nohup
                signal.signal(number, _noticed)
        selector.register(self._reading, selectors.EVENT_READ)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let signals through until the block ends."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)

    def caught(self) -> list[signal.Signals]:
        """Return the signals that were caught since the last call, in their order."""
        try:
            return [signal.Signals(number) for number in self._reading.recv(4096)]
        except BlockingIOError:
            return []

    def leave(self) -> None:
        """Forget the parent's signals in a child, which must not write into its queue; they stay blocked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._reading.close()
        self._writing.close()


def _noticed(_: int, __: object) -> None:
    """Do nothing: that there is a handler has the signal's number written to the queue."""
