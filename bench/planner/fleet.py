"""What lies past one machine: zones of pods, nodes of a Redis Cluster of one's own, and executors of Spark.

Each is planned where its own input is given, from figures that were measured of one core.
"""

from bench.planner.figures import Ledger
from bench.planner.inputs import Inputs
from bench.planner.prices import HOURS_A_MONTH

# Below this a cluster cannot elect a primary: https://redis.io/docs/latest/operate/oss_and_stack/management/scaling/
LEAST_PRIMARIES = 3
# Bytes of a number of a factor, in memory; and how much of an executor's memory Spark leaves to what is cached.
FACTOR_BYTES, CACHED_SHARE = 4, 0.5


def derive_zones(ledger: Ledger) -> None:
    """Derive the pods of a zone, of which any one may be lost, and all pods."""
    formula = "ceil(pods_region / (zones - 1))"
    ledger.derive("pods_zone", "pods", formula, source="the other zones carry what one may lose")
    ledger.derive("pods", "pods", "pods_zone * zones * regions")


def derive_cluster(ledger: Ledger) -> None:
    """Derive primaries, nodes and cost of a Redis Cluster, by memory and by what a core answers."""
    by_memory = "ceil(redis_gb / (redis_node_gb * (1 - redis_reserved)))"
    by_core = "ceil(reads_s * redis_read_us / 1000000 / redis_utilisation)"
    ledger.derive("cluster_by_memory", "primaries", by_memory)
    ledger.derive("cluster_by_core", "primaries", by_core, source="one thread of redis-server answers lookups")
    formula = f"max({LEAST_PRIMARIES}, cluster_by_memory, cluster_by_core)"
    ledger.derive("cluster_primaries", "primaries", formula)
    ledger.derive("cluster_nodes", "nodes", "cluster_primaries * redis_nodes * regions")
    ledger.derive("cluster_primary_gb", "GB", "redis_gb / cluster_primaries")
    ledger.derive("cluster_core_use", "share", "reads_s * redis_read_us / 1000000 / cluster_primaries")
    ledger.derive("cluster_lost_share", "share", "1 / cluster_primaries", source="users whose primary is lost")
    formula = f"cluster_nodes * redis_node_gb * usd_redis_gb_hour * {HOURS_A_MONTH}"
    ledger.derive("cluster_cost", "USD/month", formula)


def derive_spark(ledger: Ledger, inputs: Inputs) -> None:
    """Derive core-hours, executors and cost of a training run, and of those of a month."""
    ledger.derive("fit_core_hours", "core-hours", "interactions * growth * train_us / 3600000000")
    formula = "users_then * ranked_items * rank_ns / 3600000000000"
    ledger.derive("rank_core_hours", "core-hours", formula, source="each user's factors by each item's")
    formula = "(fit_core_hours + rank_core_hours) / spark_efficiency"
    ledger.derive("spark_core_hours", "core-hours", formula)
    ledger.derive("spark_executors", "executors", "max(1, ceil(spark_core_hours / train_hours / executor_cpus))")
    ledger.derive("spark_hours", "hours", "spark_core_hours / (spark_executors * executor_cpus)")
    held = f"(users_then / spark_executors + ranked_items) * factors * {FACTOR_BYTES}"
    ledger.derive("executor_gb", "GB", f"{held} / {CACHED_SHARE} / 1000000000", source="its users' factors, all items'")
    runs = f"{HOURS_A_MONTH} / {inputs.refresh_hours:g}"
    ledger.derive("spark_cost", "USD/month", f"spark_core_hours * usd_cpu_hour * {runs}")
