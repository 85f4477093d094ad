"""When keys were used: known to all processes, by client, and for clients beyond the table not at all."""

import os
import time

from hotplate.serve.access import uses
from hotplate.serve.access.uses import LastUses


def test_what_one_process_records_all_others_see() -> None:
    shared = LastUses()
    assert shared.of("web") is None
    pid = os.fork()
    if pid == 0:
        shared.marked.add("web")
        shared.record()
        os._exit(0)
    os.waitpid(pid, 0)
    found = shared.of("web")
    assert found is not None
    assert abs(time.time() - found) < 60
    assert shared.of("batch") is None


def test_a_full_table_forgets_nobody_and_takes_nobody_in() -> None:
    shared = LastUses()
    names = [f"client-{number}" for number in range(uses.CELLS)]
    shared.marked.update(names)
    shared.record()
    assert all(shared.of(name) for name in names)
    assert shared.marked == set()
    shared.marked.add("one too many")
    shared.record()
    assert shared.of("one too many") is None
    assert shared.of(names[0])
