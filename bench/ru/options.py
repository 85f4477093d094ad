"""The options of a sweep: the flags of `hotplate bench ru` and their defaults; a light module, as `--help` reads it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from stores.urls import redacted

SCOPE, METHOD = "What is requested", "How it is measured"


def _flag(default: object, panel: str, help_text: str, *, env: bool = True) -> Any:  # noqa: ANN401 -- as dataclasses.field
    return field(default=default, metadata={"panel": panel, "help": help_text, "env": env})


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """The options of a sweep as they were given; `bench.ru.run.plan` checks them."""

    levels: str = _flag("400,1k,2k,4k,8k,11k", SCOPE, "The levels of RU/s to measure.")
    account: str | None = _flag(
        None, SCOPE,
        "A real account, as cosmos://ACCOUNT/DATABASE, in which containers are created and dropped. Without it, an "
        "emulator is started here.",
        env=False,  # so that nobody's account is measured by accident
    )  # fmt: skip
    effects: bool = _flag(
        True, SCOPE,
        "Also measure what else has an effect: sizes, consistency, skew, cache, publishing, autoscale, burst.",
    )  # fmt: skip
    slo: str = _flag("p99=50ms,throttled=1%", METHOD, "The objective. On an emulator its latencies are of loopback.")
    duration: str | None = _flag(
        None, METHOD, "The duration of one trial. By default 2s on an emulator and 10s on an account."
    )
    connections: int = _flag(128, METHOD, "The most requests in flight.")

    @property
    def configuration(self) -> dict[str, Any]:
        """What was given as plain values, without what may be secret."""
        given = asdict(self) | {"account": self.account and redacted(self.account)}
        return {name: value for name, value in given.items() if value is not None}
