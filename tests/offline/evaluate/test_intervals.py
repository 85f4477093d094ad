"""Intervals: the bootstrap is that of a plain loop, and holds the truth as often as it says."""

import numpy as np
import pytest

from offline.evaluate.intervals import bootstrap, of_runs, resampled_sums


def test_the_bootstrap_is_that_of_a_plain_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(5)
    whole, gaps = rng.random(40), rng.random(40)
    gaps[rng.random(40) < 0.3] = np.nan
    drawn = resampled_sums(np.eye(40), seed=4).astype(int)
    assert (drawn.sum(axis=1) == 40).all()
    found = bootstrap({"whole": whole, "gaps": gaps}, seed=4)
    for name, values in (("whole", whole), ("gaps", gaps)):
        means = [np.nanmean(np.repeat(values, times)) for times in drawn]
        assert found[name] == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)


def test_the_bootstrap_gives_the_interval_that_another_resampler_gives() -> None:
    # Not above, because to import it takes a second, which every worker that collects the tests would spend.
    from sklearn.utils import resample  # type: ignore[import-untyped]  # noqa: PLC0415 -- published without types

    values = np.random.default_rng(6).exponential(size=300)
    means = [resample(values, random_state=seed).mean() for seed in range(1000)]
    low, high = bootstrap({"metric": values})["metric"]
    expected_low, expected_high = np.quantile(means, [0.025, 0.975])
    assert low == pytest.approx(expected_low, rel=0.02)
    assert high == pytest.approx(expected_high, rel=0.02)


def test_more_users_than_are_resampled_one_by_one_give_the_interval_that_the_normal_law_gives() -> None:
    values = np.random.default_rng(7).random(60_001)
    low, high = bootstrap({"metric": values})["metric"]
    reach = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - reach, abs=reach / 8)
    assert high == pytest.approx(values.mean() + reach, abs=reach / 8)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    values = {"metric": np.random.default_rng(8).random(50)}
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) != bootstrap(values, seed=1)


def test_what_hardly_any_user_has_gets_no_interval() -> None:
    rare = np.full(20, np.nan)
    rare[3] = 0.5
    assert bootstrap({"rare": rare, "usual": np.ones(20)}) == {"usual": (1.0, 1.0)}


def covered(draws: int, users: int) -> tuple[float, float]:
    """Return how often the bootstrap, and Student's t, hold the mean of an exponential law."""
    rng = np.random.default_rng(9)
    bootstrapped, of_five = [], []
    for _ in range(draws):
        low, high = bootstrap({"metric": rng.exponential(size=users)}, resamples=300)["metric"]
        bootstrapped.append(low <= 1 <= high)
        low, high = of_runs(rng.normal(1, 1, 5).tolist())
        of_five.append(low <= 1 <= high)
    return float(np.mean(bootstrapped)), float(np.mean(of_five))


@pytest.mark.soak
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    bootstrapped, of_five = covered(2000, 200)
    # Three standard errors of 2,000 draws are 0.015, and the bootstrap of a skewed law is a little short.
    assert 0.92 <= bootstrapped <= 0.965
    assert 0.935 <= of_five <= 0.965


def test_the_interval_of_runs_is_the_textbooks() -> None:
    # t(4 degrees of freedom, 0.975) = 2.776445
    assert of_runs([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - 2.776445 * 0.7071068, 3 + 2.776445 * 0.7071068))
