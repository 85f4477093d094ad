"""Servers behind sentinels, which name the primary and its replicas.

During a failover the former primary acknowledges writes for some seconds, and these writes are lost. So all sentinels
are asked, and of their replies the highest epoch counts: it is raised by each failover. redis-py by itself believes the
first sentinel that replies.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from hotplate.stores.concurrency import all_done
from hotplate.stores.errors import AccessDenied, StoreClosed, StoreError, StoreUnavailable
from hotplate.stores.redis.client import connect_to_primary, settings_of
from hotplate.stores.redis.credentials import Credentials
from hotplate.stores.redis.deployment import Deployment, RedisNode
from hotplate.stores.redis.server import Server
from hotplate.stores.redis.url import RedisAddress
from hotplate.stores.store import Finding, Level, StoreUse

UNUSABLE = ("is_sdown", "is_odown", "is_disconnected")  # of replicas, as redis-py calls a sentinel's flags


class SentinelState(NamedTuple):
    """One sentinel's view; the highest epoch, which comes first in comparisons, has seen the latest failover."""

    epoch: int
    primary: RedisNode
    replicas: tuple[RedisNode, ...]


class Sentinels(Deployment):
    """The primary and the replicas that sentinels name."""

    expects_replicas = True
    set_up_primary = staticmethod(connect_to_primary)
    settle_s = 5.0

    def __init__(self, address: RedisAddress, credentials: Credentials | None = None) -> None:
        super().__init__(address, credentials)
        self._name = address.primary_name
        self._sentinels = [Server(sentinel, settings_of(sentinel)) for sentinel in address.sentinels]

    def address(self, node: RedisNode) -> RedisAddress:
        shown = f"{self.shown} ({node})"
        return replace(self.common, shown=shown, host=node.host, port=node.port)

    async def confirm_primary(self) -> None:
        """Ask the sentinels, and follow them; raises StoreUnavailable unless most of them answer."""
        self.lifetime.check()  # redis-py's clients would connect again after `close`
        errors = await self.ask()
        if 2 * len(errors) >= len(self._sentinels):
            sentence = f"most sentinels of {self.shown} do not say where its primary is, so it may be another"
            raise StoreUnavailable(f"{sentence}: {'; '.join(errors)}")

    async def named_replicas(self, primary: tuple[str, int]) -> int:
        """Return how many replicas the sentinels name; StoreUnavailable if they name another primary.

        A replica that is being promoted no longer follows the primary, some seconds before the sentinels say so. So
        the primary's own count is not enough.
        """
        try:
            await self.confirm_primary()
        except (AccessDenied, StoreClosed) as error:  # permanent, which would say that nothing was written
            raise StoreUnavailable(str(error)) from error
        if self.primaries[0] != primary:  # what was written to it may be lost
            raise StoreUnavailable(f"{RedisNode(*primary)} was replaced by {self.primaries[0]} while it was written to")
        return await super().named_replicas(primary)

    async def ask(self) -> list[str]:
        """Ask all sentinels for the primary and its replicas, and follow the answer with the highest epoch.

        An epoch numbers failovers, so the highest one has seen the latest. Returns the errors of sentinels that gave no
        answer. Raises StoreUnavailable if no sentinel answers.
        """
        answers = await asyncio.gather(*map(self._ask_one, self._sentinels), return_exceptions=True)
        states = [answer for answer in answers if isinstance(answer, SentinelState)]
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        errors = [str(failure) for failure in failures]
        if not states:
            is_denied = all(isinstance(failure, AccessDenied) for failure in failures)
            error = AccessDenied if is_denied else StoreUnavailable
            raise error(f"no sentinel of {self.shown} says where its primary is: {'; '.join(errors)}")
        latest = max(states)
        self.follow((latest.primary, *latest.replicas))
        return errors

    async def examine(self) -> list[Finding]:
        """Return a finding per sentinel, whether it reaches a quorum, and one on whether all name the same primary."""
        findings = list[Finding]()
        primaries = set[RedisNode]()
        for sentinel in self._sentinels:
            where = sentinel.address.shown
            try:
                primaries.add((await self._ask_one(sentinel)).primary)
                await sentinel.execute("SENTINEL CKQUORUM", self._name)
                findings.append(Finding(Level.OK, "sentinel", f"{where}: a quorum of sentinels can be reached"))
            except StoreError as error:
                level = Level.ERROR if "NOQUORUM" in str(error) else Level.WARNING  # others may form a quorum
                findings.append(Finding(level, "sentinel", f"{where}: {error}", prevents=()))

        level = Level.OK if len(primaries) == 1 else Level.ERROR
        sentence = f"they say that the primary is {' or '.join(map(str, primaries)) or 'unknown'}"
        prevents = () if level is Level.OK else (StoreUse.PUBLISHING,)
        return [*findings, Finding(level, "sentinels", sentence, prevents)]

    async def close_connections(self) -> None:
        await super().close_connections()
        await all_done(*(sentinel.close() for sentinel in self._sentinels))

    async def _ask_one(self, sentinel: Server) -> SentinelState:
        """Return what one sentinel knows of the primary and its replicas.

        All of it is asked for at once, so that the replies are of the same instant. Raises StoreError.
        """
        where = sentinel.address.shown
        try:
            (host, port), primary, replicas = await sentinel.ask(
                ("SENTINEL GET-MASTER-ADDR-BY-NAME", self._name),
                ("SENTINEL MASTER", self._name),
                ("SENTINEL SLAVES", self._name),
            )
            return SentinelState(int(primary["config-epoch"]), RedisNode(host.decode(), int(port)), _usable(replicas))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise StoreUnavailable(f"{where} replied in an unknown format") from error


def _usable(replicas: Sequence[Mapping[str, Any]]) -> tuple[RedisNode, ...]:
    """Return the replicas that can be read, of those that a sentinel describes.

    These are the replicas linked to the primary, or if there is none, as after the primary's death, all that are up.
    """
    usable = [replica for replica in replicas if not any(replica[flag] for flag in UNUSABLE)]
    linked = [replica for replica in usable if replica.get("master-link-status") == "ok"]
    return tuple(RedisNode(replica["ip"], int(replica["port"])) for replica in linked or usable)
