"""The autoscaler's arithmetic: the documentation's examples by hand, and what holds whatever the metrics say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.planner.autoscaling import Day, make_day, replay
from bench.planner.hpa import SYNC_S, Autoscaler, Hpa, Metric, Policy, Rules, recommended
from tests.support.planning import a_plan


@pytest.mark.parametrize(
    ("pods", "metric", "wanted"),
    [
        (1, Metric(200 / 100, 1), 2),
        (2, Metric(50 / 100, 2), 1),
        (50, Metric(90 / 75, 50), 60),
        (10, Metric(1.09, 10), 10),  # within the tolerance
        (10, Metric(0.89, 10), 9),
        (4, Metric(1.5, 3, unready=1), 5),  # 4.5 of 4 pods, of which one is idle as yet
        (4, Metric(1.5, 2, unready=2), 4),  # 3 of 4 would turn more into fewer
        (4, Metric(0.5, 3, unready=1), 2),  # an unready one does not count where pods are removed
        (4, Metric(0.5, 3, missing=1), 3),  # 2.5: an unknown one is on target
        (4, Metric(1.3, 3, missing=1), 4),  # 3.9: an unknown one is idle
    ],
)
def test_one_metric_wants_what_the_documentation_says(pods: int, metric: Metric, wanted: int) -> None:
    assert recommended(pods, metric) == wanted


def scaled(hpa: Hpa, pods: int, use: float, times: int, *, every_s: int) -> list[int]:
    """Return the numbers of pods that follow where one pod's worth of load is on target by *use*, all pods together."""
    autoscaler, numbers = Autoscaler(hpa), [pods]
    for time in range(times):
        numbers.append(autoscaler.decide(time * every_s, numbers[-1], [Metric(use / numbers[-1], numbers[-1])]))
    return numbers


def test_policies_take_pods_away_as_in_the_documentations_example() -> None:
    down = Rules(0, (Policy("Pods", 4, 60), Policy("Percent", 10, 60)))
    numbers = scaled(Hpa(1, 100, 50, 1, down=down), 80, 10, 14, every_s=60)
    assert numbers == [80, 72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20, 16, 12, 10]


def test_pods_are_doubled_or_four_are_added_every_fifteen_seconds_by_default() -> None:
    assert scaled(Hpa(1, 100, 50, 1), 1, 60, 5, every_s=15) == [1, 5, 10, 20, 40, 60]


def test_the_metric_that_wants_most_decides_and_one_that_measures_nobody_does_not() -> None:
    metrics = [Metric(0.5, 4), Metric(2.0, 4), Metric(9.0, 0, unready=4)]
    assert Autoscaler(Hpa(1, 100, 50, 1)).decide(0, 4, metrics) == 8
    assert Autoscaler(Hpa(1, 100, 50, 1)).decide(0, 4, metrics[2:]) == 4


policies = st.builds(Policy, st.sampled_from(["Pods", "Percent"]), st.integers(1, 200), st.sampled_from([15, 60, 300]))
rules = st.builds(
    Rules,
    st.sampled_from([0, 60, 300]),
    st.lists(policies, min_size=1, max_size=2).map(tuple),
)
autoscalers = st.builds(
    lambda least, more, up, down: Hpa(least, least + more, 50, 1, up, down),
    st.integers(1, 5), st.integers(0, 30), rules, rules,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(hpa=autoscalers, pods=st.integers(1, 40), uses=st.lists(st.floats(0, 4), min_size=1, max_size=40))
def test_pods_stay_within_bounds_windows_and_policies(hpa: Hpa, pods: int, uses: list[float]) -> None:
    autoscaler, pods = Autoscaler(hpa), min(max(pods, hpa.min_pods), hpa.max_pods)
    past = list[tuple[int, int, int]]()  # when there were how many pods, and how many were recommended
    for turn, use in enumerate(uses):
        now_s = turn * SYNC_S
        past.append((now_s, pods, recommended(pods, Metric(use, pods))))
        before, pods = pods, autoscaler.decide(now_s, pods, [Metric(use, pods)])
        assert hpa.min_pods <= pods <= hpa.max_pods
        if pods == before:
            continue
        direction, held = (1, hpa.up) if pods > before else (-1, hpa.down)
        for at_s, _, wanted in past:
            if at_s == now_s or at_s > now_s - held.window_s:
                assert direction * min(max(wanted, hpa.min_pods), hpa.max_pods) >= direction * pods
        assert any(
            direction * pods <= direction * rule.limit(_pods_at(past, now_s - rule.period_s), direction)
            for rule in held.policies
        )


def _pods_at(past: list[tuple[int, int, int]], at_s: int) -> int:
    """Return how many pods there were after what was decided by *at_s*."""
    return next((pods for since_s, pods, _ in past if since_s > at_s), past[-1][1])


def test_a_load_that_stays_the_same_changes_nothing_and_costs_its_pods() -> None:
    done = replay(Hpa(2, 10, 60, 60), Day([180.0] * 720, frozenset(), 100, 80, 20))
    assert (done.outside_s, done.pod_hours, done.most_pods, done.changes) == (0, 3, 3, 0)


def test_a_step_is_seen_late_and_answered_by_pods_that_start() -> None:
    load = [120.0] * 120 + [240.0] * 120
    done = replay(Hpa(2, 10, 60, 60), Day(load, frozenset(), 100, 80, 20))
    # The CPU is above its target in what is read 30 s later; full windows double it to 4 pods, ready in 20 s more.
    assert done.most_pods == 4
    assert 30 <= done.outside_s <= 30 + SYNC_S + 20


def test_one_pod_alone_is_nobody_when_its_node_is_lost() -> None:
    alone = replay(Hpa(1, 10, 60, 60), Day([30.0] * 120, frozenset({60}), 100, 80, 20))
    two = replay(Hpa(2, 10, 60, 60), Day([30.0] * 120, frozenset({60}), 100, 80, 20))
    assert (alone.outside_s, two.outside_s) == (20, 0)


def test_a_day_has_the_plans_hours_and_in_two_of_them_a_burst_and_a_lost_node() -> None:
    plan = a_plan(peak_rps=1_000, profile="evening", request_cpu_us=100)
    day = make_day(plan)
    assert (day.pod_rps, day.objective_rps) == (10_000, 8_000)
    assert sorted(day.losses) == [(4 * 3600 + 1200) // 5, (20 * 3600 + 1200) // 5]
    assert day.load[int(13.5 * 720)] == pytest.approx(450, rel=0.1)
    assert max(day.load) == pytest.approx(2_000, rel=0.1)
    assert make_day(a_plan(pod_rps=700, request_cpu_us=1_000)).objective_rps == 700
