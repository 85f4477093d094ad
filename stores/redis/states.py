"""The states of a release in Redis, `draft:WRITER` or `sealed`, and the scripts that change them.

A script is one step on the server. Where there may be something to replace, each deletes before it sets: a script that
has written is not stopped by `maxmemory`, and deleting counts as writing. A full server must still be able to give a
draft up, or nothing would free its memory.
"""

from stores.catalogue import DraftRef
from stores.store import not_found, sealed, taken_over

# The state of a release that takes no more rows; that of a draft is `draft:WRITER`.
SEALED = b"sealed"

# CLAIM takes the set of incarnations and the keys of a release's states; the state to set, and the incarnation. It
# returns the state before; one that is sealed stays.
CLAIM = """
local state = redis.call('GET', KEYS[2])
if state == 'sealed' then return state end
local pairs = {}
for place = 2, #KEYS do
    pairs[2 * place - 3] = KEYS[place]
    pairs[2 * place - 2] = ARGV[1]
end
if state then redis.call('DEL', unpack(KEYS, 2)) end
redis.call('MSET', unpack(pairs))
redis.call('SADD', KEYS[1], ARGV[2])
return state
"""

# REPLACE takes the keys of a release's states, the state that is expected of the first, empty for none, and the state
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

# FORGET takes the set of incarnations, and the first of a release's states; the incarnation. A late writer may have
# claimed again what was erased, and must be found by the next prune.
FORGET = """
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SREM', KEYS[1], ARGV[1]) end
return 1
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
