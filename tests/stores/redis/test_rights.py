"""Users that lack a right on a command in the middle of a change: nothing is half-done."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.exceptions import ResponseError

from hotplate.stores.errors import AccessDenied, StoreError
from hotplate.stores.lifecycle import prune
from hotplate.stores.redis.errors import translated
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.rehearsal import stand_in_for
from hotplate.stores.store import Row
from hotplate.stores.verification import verify
from tests.support.redis_server import RedisServer
from tests.support.stores import publish, publish_three, with_each_verb

ROWS = [Row("popular:", b"{}"), *(Row(f"user:{number}", b"list of %d" % number) for number in range(9))]

# All commands that change data, and some that read.
COMMANDS = (
    "set", "persist", "del", "unlink", "mset", "sadd", "srem", "rpush", "lrem", "hset", "eval", "multi", "watch", "get",
    "exists", "sismember",
)  # fmt: skip

# Those that every change needs.
NEEDED = ("set", "persist", "eval", "get")

# Of Redis 7.0, and of later versions.
REFUSALS = (
    "The user executing the script can't run this command or subcommand",
    "ACL failure in script: User reader has no permissions to run the 'set' command",
)

Verb = Callable[[RedisStore], Awaitable[object]]


@pytest.fixture
async def limited(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    """A store of a user, named like the prefix, with all rights."""
    redis_server.execute_command("ACL", "SETUSER", prefix, "on", ">secret", "~*", "&*", "+@all")
    store = open_url(redis_server.url(prefix=prefix, user=f"{prefix}:secret@"))
    yield store
    await store.close()
    redis_server.execute_command("ACL", "DELUSER", prefix)


@with_each_verb(ROWS)
async def test_releases_are_whole_after_a_refused_command(
    redis: RedisStore, limited: RedisStore, redis_server: RedisServer, prefix: str, verb: Verb
) -> None:
    await publish_three(redis, ROWS)
    before = await redis.catalogue()
    published = redis_server.copied(prefix)

    for command in COMMANDS:
        redis_server.put_back(prefix, published)
        redis_server.execute_command("ACL", "SETUSER", prefix, f"-{command}")
        error = None
        try:
            await verb(limited)
        except StoreError as raised:
            error = raised
        redis_server.execute_command("ACL", "SETUSER", prefix, f"+{command}")
        assert isinstance(error, AccessDenied) or (error is None and command not in NEEDED), command

        after = await redis.catalogue()
        assert after.generation >= before.generation, command
        for entry in after.committed:
            await verify(redis, entry.ref)
        await prune(limited, keep=0, grace_s=0)
        assert set(await redis.incarnations()) <= (await redis.catalogue()).incarnations, command


async def test_user_without_info_may_publish_rehearse_and_prune(
    limited: RedisStore, redis_server: RedisServer, prefix: str
) -> None:
    """INFO is in the category `dangerous` of rights."""
    redis_server.execute_command("ACL", "SETUSER", prefix, "-@dangerous")
    former = await publish(limited, ROWS)
    live = await publish(limited, ROWS)
    assert await prune(limited, keep=0, grace_s=0) == [former]
    await verify(limited, (await limited.catalogue()).find(live).ref)
    async with stand_in_for(limited) as stand_in:
        assert await publish(stand_in, ROWS)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_right_that_a_script_lacks_is_denied_without_the_place_in_the_script(refusal: str) -> None:
    error = translated(ResponseError(f"{refusal} script: {'8a' * 20}, on @user_script:5."), "redis://a/0")
    assert isinstance(error, AccessDenied)
    assert str(error).startswith(f"the Redis user of redis://a/0 lacks a permission: {refusal} (")


def test_protected_mode_denies_access() -> None:
    refusal = "DENIED Redis is running in protected mode because protected mode is enabled and no password is set."
    error = translated(ResponseError(refusal), "redis://a/0")
    assert isinstance(error, AccessDenied)
    assert str(error) == "redis://a/0 is in protected mode and accepts only local clients; set a password there"
