"""The options of a sweep: the flags of `hotplate bench ru` and their defaults; a light module, as `--help` reads it."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from bench.options import HOW, WHAT, Flag
from stores.connect import redacted


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """Options of `bench ru`, as they were given; `bench.ru.run.plan` checks them."""

    levels: Annotated[str, Flag("The levels of RU/s to measure.", WHAT)] = "400,1k,2k,4k,8k,11k"
    account: Annotated[
        str | None,
        Flag(
            "A real account, as cosmos://ACCOUNT/DATABASE, in which containers are created and dropped. Without it, an "
            "emulator is started here.",
            WHAT,
            env=False,  # so that nobody's account is measured by accident
        ),
    ] = None
    effects: Annotated[
        bool, Flag("Also measure other effects: sizes, consistency, skew, cache, publishing, autoscale, burst.", WHAT)
    ] = True
    slo: Annotated[str, Flag("The objective. On an emulator its latencies are of loopback.", HOW)] = (
        "p99=50ms,throttled=1%"
    )
    duration: Annotated[
        str | None, Flag("The duration of one trial. By default 2s on an emulator and 10s on an account.", HOW)
    ] = None
    connections: Annotated[int, Flag("The most requests in flight.", HOW)] = 128
    yes: Annotated[bool, Flag("With --account: spend the money without asking first.", HOW, env=False)] = False

    @property
    def configuration(self) -> dict[str, Any]:
        """What was given as plain values, without what may be secret."""
        given = asdict(self) | {"account": self.account and redacted(self.account), "yes": None}
        return {name: value for name, value in given.items() if value is not None}
