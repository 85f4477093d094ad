"""Accepting by ourselves: what waits when the port closes is taken, and a lack of descriptors passes."""

import asyncio
import errno
import logging
import os
import socket
from contextlib import ExitStack

import pytest

from hotplate.serve.connections.acceptor import Acceptor


class Scarce:
    """A listening socket for whose connections there are no descriptors at times."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        self.is_out = False

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        if self.is_out:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.listening.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.listening, name)


def test_what_waits_to_be_accepted_when_the_port_closes_is_taken_and_not_reset() -> None:
    async def test() -> None:
        with ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
            taken = list[socket.socket]()
            acceptor = Acceptor(listening, lambda accepted, _: taken.append(stack.enter_context(accepted)))
            address = listening.getsockname()
            waiting = [stack.enter_context(socket.create_connection(address)) for _ in range(20)]
            acceptor.close()
            acceptor.close()
            assert len(taken) == len(waiting)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)

    asyncio.run(test())


def test_connections_wait_while_there_is_no_descriptor_and_are_taken_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        with ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            scarce, taken = Scarce(listening), asyncio.Queue[str]()

            def take(accepted: socket.socket, address: str) -> None:
                stack.enter_context(accepted)
                taken.put_nowait(address)

            acceptor = Acceptor(scarce, take)  # type: ignore[arg-type]  # all that is used of a socket
            scarce.is_out = True
            stack.enter_context(socket.create_connection(listening.getsockname()))
            while not caplog.records:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.25)
            assert taken.empty()
            scarce.is_out = False
            async with asyncio.timeout(30):
                assert await taken.get() == "127.0.0.1"
            acceptor.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(test())
    assert [record.getMessage() for record in caplog.records] == [
        "connections wait to be accepted: Too many open files; raise `ulimit -n`"
    ]
