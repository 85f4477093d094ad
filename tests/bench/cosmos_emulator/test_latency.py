"""The latency of `--latency`: its percentiles, what it delays, and what is refused."""

from statistics import quantiles

import pytest

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.errors import BenchMisused
from tests.support.cosmos_server import Direct

WANTED = "p50=4ms,p99=10ms"


def test_drawn_delays_have_the_percentiles_that_were_given() -> None:
    delay_s = parse_latency(WANTED)
    drawn = quantiles((delay_s() for _ in range(100_000)), n=100)
    assert drawn[49] == pytest.approx(0.004, rel=0.02)
    assert drawn[98] == pytest.approx(0.010, rel=0.03)


@pytest.mark.parametrize("text", ["", "4ms", "p50=4ms", "p50=10ms,p99=4ms", "p50=0ms,p99=4ms", "p50=4ms,p99=100s"])
def test_a_latency_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(BenchMisused, match="--latency"):
        parse_latency(text)


def test_only_the_data_plane_is_delayed_and_refusals_with_it() -> None:
    direct = Direct(lambda: 1_000_000_000.5)
    direct.service.latency = parse_latency(WANTED)
    assert direct.request("GET", "/dbs/d/colls/c").delay_s == 0
    assert direct.item("GET", "nobody").status == 404
    assert all(direct.item(method, "u", {"id": "u"}).delay_s > 0 for method in ("GET", "POST", "PUT", "DELETE"))
    assert direct.query("SELECT * FROM c").delay_s > 0
