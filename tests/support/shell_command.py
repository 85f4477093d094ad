"""`hotplate` and `python` for shell scripts, in processes forked from one with loaded modules.

A script finds programs of these names first on its PATH. Each asks a server over a socket to fork, passes its standard
streams, arguments, environment and folder, and ends with the same exit code.
"""

import json
import os
import runpy
import shlex
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotplate.__main__ import main
from tests.support.forked import forked_process

# Without `site`, because it starts in a tenth of the time.
_PROGRAM = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} -IS {{client}} {{socket}} {{name}} "$@"
"""
_CLIENT = """
import json, os, signal, socket, sys

path, *words = sys.argv[1:]
connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
connection.connect(path)
socket.send_fds(connection, [b"0"], [0, 1, 2])
request = json.dumps([words, dict(os.environ), os.getcwd()]).encode()
connection.sendall(len(request).to_bytes(4, "big") + request)
pid = int.from_bytes(connection.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = connection.recv(1)
sys.exit(code[0] if code else 1)
"""


@contextmanager
def programs(folder: Path) -> Iterator[Path]:
    """Yield a folder for the PATH, with `hotplate` and `python`, until the block ends."""
    folder.mkdir()
    client = folder / "client.py"
    client.write_text(_CLIENT)
    path = folder / "socket"
    for name in ("hotplate", "python"):
        program = folder / name
        program.write_text(_PROGRAM.format(client=client, socket=path, name=name))
        program.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen(64)
        server = forked_process(_serve, listening)
    yield folder
    server.terminate()
    server.join()


def _serve(listening: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listening.close()
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Run what a program asks for, and end this process."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    length = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    words, environment, folder = json.loads(connection.recv(length, socket.MSG_WAITALL))
    connection.sendall(os.getpid().to_bytes(4, "big"))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # The inherited ones know whether they are a terminal or a file, and where they stand in it.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- for as long as the process runs
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 -- as above
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 -- as above
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    code = _code_of(words)
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([code]))
    os._exit(code)


def _code_of(words: list[str]) -> int:
    try:
        if words[0] == "python":
            sys.argv = words[1:]
            sys.path.insert(0, "")
            runpy.run_path(words[1], run_name="__main__")
        else:
            sys.argv = words
            main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 -- as the interpreter does
        traceback.print_exc()
        return 1
    return 0
