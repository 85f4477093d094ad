"""What to look out for in a plan: where it breaks a limit, where it rests on no price, and what it does not say."""

from collections.abc import Iterator

from bench.planner.plan import Plan
from stores.cosmos.throughput import MAX_RU, PARTITION_RU, RU_AT_BIRTH
from stores.prices import LISTED


def cautions(plan: Plan) -> list[str]:
    """Say all of them, limits first."""
    return [*_limits(plan), *_partitions(plan), *_prices(plan), *_unsaid(plan)]


def _limits(plan: Plan) -> Iterator[str]:
    inputs = plan.given.inputs
    hot = plan.number("hot_key_ru")
    if hot > PARTITION_RU:
        yield (
            f"the hottest user alone takes {hot:,.0f} RU/s, and a key has one partition of at most {PARTITION_RU:,}: "
            f"no RU/s help; answer it from a cache"
        )
    if max(plan.number("serve_ru"), plan.number("publish_ru_s")) >= MAX_RU:
        yield f"{MAX_RU:,} RU/s and more for a container need a support ticket"
    hours = plan.number("publish_hours")
    if hours > inputs.window_hours + 1e-9:
        yield f"a publish takes {hours:,.1f} hours, more than the {inputs.window_hours:g} it may"
    if hours > inputs.refresh_hours:
        yield f"a publish takes {hours:,.1f} hours, and the next begins after {inputs.refresh_hours:g}"


def _partitions(plan: Plan) -> Iterator[str]:
    born = plan.number("partitions_born")
    needed = max(plan.number("partitions_by_gb"), -(-plan.number("serve_ru") // RU_AT_BIRTH))
    if born <= needed:
        return
    share = plan.number("partition_ru")
    if plan.given.inputs.publishing == "release":
        yield (
            f"a container made with {plan.number('born_ru'):,.0f} RU/s has {born:,.0f} partitions for life, and "
            f"{needed:,.0f} would do: of {plan.number('serve_ru'):,.0f} RU/s each then holds {share:,.0f}, which is "
            f"all that a hot user has; publish more slowly to have fewer"
        )
    else:
        yield (
            f"what was once given {plan.number('highest_ru'):,.0f} RU/s has {born:,.0f} partitions for life, and "
            f"{needed:,.0f} would do; a new container has fewer"
        )


def _prices(plan: Plan) -> Iterator[str]:
    for name, what in (("usd_redis_node_hour", "a Redis node"), ("usd_cpu_hour", "a vCPU")):
        price = plan.figures[name]
        if not price.source.startswith(LISTED):
            yield f"{plan.number(name):g} USD for {what} and hour is {price.source}; put yours in a file for --prices"


def _unsaid(plan: Plan) -> Iterator[str]:
    inputs = plan.given.inputs
    if inputs.p99_ms is not None and inputs.pod_rps is None:
        yield f"nothing says that a p99 of {inputs.p99_ms:g} ms is kept; give a measurement with --from-report"
    if inputs.zipf is None and inputs.hot_share is None:
        yield "all users are taken as equally busy; --zipf 0.9, say, shows what a hot one does to its partition"
