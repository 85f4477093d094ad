"""How many pods serve it: by Little's law and by what a pod bears, the larger taken."""

from math import ceil

from bench.planner.figures import Book
from bench.planner.inputs import Inputs
from bench.planner.load import Load
from stores.prices import HOURS_A_MONTH, Prices


def work_out_pods(book: Book, inputs: Inputs, load: Load, prices: Prices) -> float:
    """Work out pods and their cost; returns USD a month."""
    by_little = book.work(
        "pods_by_little",
        ceil(round(load.peak * inputs.request_ms / 1000 / inputs.pod_utilisation / inputs.pod_concurrency, 9)),
        "pods",
        "ceil(peak_region * request_ms / 1000 / pod_utilisation / pod_concurrency)",
        source="Little's law: requests in a pod = rate * time",
    )
    if inputs.pod_rps is not None:
        each = book.work("pod_capacity", inputs.pod_rps, "requests/s", "pod_rps")
    else:
        formula = "1000000 * pod_cpus / request_cpu_us"
        each = book.work("pod_capacity", 1e6 * inputs.pod_cpus / inputs.request_cpu_us, "requests/s", formula)
    by_capacity = book.work(
        "pods_by_capacity",
        ceil(round(load.peak / each / inputs.pod_utilisation, 9)),
        "pods",
        "ceil(peak_region / pod_capacity / pod_utilisation)",
    )
    in_region = max(by_little, by_capacity, inputs.min_pods)
    book.work("pods_region", in_region, "pods", "max(pods_by_little, pods_by_capacity, min_pods)")
    pods = book.work("pods", in_region * inputs.regions, "pods", "pods_region * regions")
    cost = pods * inputs.pod_cpus * prices.cpu_hour.usd * HOURS_A_MONTH
    return book.work("pods_cost", cost, "USD/month", f"pods * pod_cpus * usd_cpu_hour * {HOURS_A_MONTH}")
