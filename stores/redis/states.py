"""The states of a release in Redis, `draft:WRITER` or `sealed`, and the scripts that change them.

A script is one step on the server. If there may be something to replace, each deletes before it sets: a script that
has written is not stopped by `maxmemory`, and deleting counts as writing. A full server must still be able to give a
draft up, or nothing would free its memory.
"""

from hotplate.stores.catalogue import DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.store import not_found, sealed, taken_over

# The state of a release that takes no more rows; that of a draft is `draft:WRITER`.
SEALED = b"sealed"

# CLAIM takes the keys of the states of a release's first step, and the hash of its points; the state to set. It returns
# the state before; one that is sealed stays. From here on it is counted how many batches are listed.
CLAIM = """
local points = table.remove(KEYS)
local state = redis.call('GET', KEYS[1])
if state == 'sealed' then return state end
local pairs = {}
for place = 1, #KEYS do
    pairs[2 * place - 1] = KEYS[place]
    pairs[2 * place] = ARGV[1]
end
if state then redis.call('DEL', unpack(KEYS)) end
redis.call('MSET', unpack(pairs))
redis.call('HSETNX', points, 'batches', 0)
return state
"""

# REPLACE takes the keys of a step's states, the state that is expected of the first, empty for none, and the state
# to set. It returns the state before.
REPLACE = """
local state = redis.call('GET', KEYS[1])
if (state or '') ~= ARGV[1] then return state end
local pairs = {}
for place = 1, #KEYS do
    pairs[2 * place - 1] = KEYS[place]
    pairs[2 * place] = ARGV[2]
end
if state then redis.call('DEL', unpack(KEYS)) end
redis.call('MSET', unpack(pairs))
return state
"""


def state_of(draft: DraftRef) -> bytes:
    """Return the state of a draft that is its writer's."""
    return b"draft:" + draft.writer.encode()


def check_owned(draft: DraftRef, state: bytes | None) -> None:
    """Raise what *state* says, unless that the draft is its writer's."""
    if state is None:
        raise not_found(draft)
    if state == SEALED:
        raise sealed(draft)
    if state != state_of(draft):
        raise taken_over(draft)


def unsealed(release: ReleaseRef, parts: int, of: int) -> ReleaseNotFound:
    """Return the error of a release of which some *parts* are not sealed, *of* those that have a state each."""
    which = "" if of == 1 else f": {parts} of its {of} parts are not sealed"
    return ReleaseNotFound(
        f"a server has lost the end of release {release.id}, as a failover may lose what was sent last{which}; publish "
        f"it again"
    )
