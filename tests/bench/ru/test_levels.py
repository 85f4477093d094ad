"""The levels of RU/s on a simulated service and budget, in virtual time; options, costs and the table."""

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from hotplate.base.report import Report, Row, print_report, to_json
from hotplate.bench.cosmos_emulator.partitions import Budget
from hotplate.bench.errors import BenchMisused
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.measure.experiment import Ending
from hotplate.bench.options import SweepOptions
from hotplate.bench.planner.pictures import pictures
from hotplate.bench.planner.prices import load as load_prices
from hotplate.bench.ru.levels import (
    BURST,
    CALM,
    COMPUTED_FOR,
    OVERLOAD,
    Level,
    LevelTrial,
    from_store,
    measure_level,
    trial,
)
from hotplate.bench.ru.run import cost, plan
from hotplate.bench.ru.sandbox import own_url
from hotplate.bench.ru.sweep import Sweep, report
from hotplate.stores.cosmos.url import Throughput
from tests.support.planning import a_plan
from tests.support.soak import in_soak
from tests.support.virtual import delayed, simulate

URL = "cosmos+http://127.0.0.1:8081/bench"
OWN = b'{"source":"personal"}'
POPULAR = b'{"source":"popular"}'


LEVEL = Level(ru=400, size_kb=1, charge_ru=1.0, publish_ru=6.25)


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class Account:
    """A service over a container of even partitions with a budget per second; *saved_ru* is burst capacity."""

    def __init__(
        self, ru: int, charge_ru: float, *, parts: float = 1, saved_ru: float = 0.0, offset_s: float = 0.0
    ) -> None:
        self.budgets = [Budget(ru / parts) for _ in range(int(parts))]
        self.charge_ru = charge_ru
        self.saved_ru = saved_ru
        self.offset_s = offset_s
        self.began_s = 1_000_000.0
        self.requests = self.refused = 0

    def respond(self, now: float, _request: bytes) -> bytes:
        at = self.began_s + self.offset_s + now
        budget = self.budgets[self.requests % len(self.budgets)]
        self.requests += 1
        if budget.wait_ms(at):
            if self.saved_ru < self.charge_ru:
                self.refused += 1
                return http(POPULAR)
            self.saved_ru -= self.charge_ru
            return http(OWN)
        budget.charge(at, self.charge_ru)
        return http(OWN)

    def attempt(self, level: Level, seconds: int = 10, latency_s: float = 0.004) -> Callable[[float], LevelTrial]:
        def attempt(share: float) -> LevelTrial:
            rate = share * level.capacity_per_s
            before = self.refused
            load = Load(
                url="http://h", requests=Gets("/"), rate=rate, duration_s=seconds + 2, connections=500, check=from_store
            )
            result = simulate(load, lambda arrival_s: arrival_s + latency_s, respond=self.respond)
            self.began_s += 1_000
            return trial(share, result, self.refused - before)

        return attempt


def measured(
    ru: int,
    charge_ru: float = 1.0,
    *,
    emulated: bool = True,
    **account: float,
) -> Level:
    level = Level(ru=ru, size_kb=1, charge_ru=charge_ru, publish_ru=6.25)
    attempt = Account(ru, charge_ru, **account).attempt(level, 10 if ru < 2_000 else 3)
    return measure_level(level, attempt, emulated=emulated)


@pytest.mark.parametrize(
    ("ru", "charge_ru", "offset_s"),
    [
        (400, 1.0, 0.0),
        in_soak(400, 1.67, 0.37),
        in_soak(400, 1.0, 0.37),
        in_soak(400, 1.67, 0.0),
        in_soak(1_000, 1.14, 0.0),
        in_soak(1_000, 1.14, 0.37),
    ],
)
def test_ten_second_window_gains_no_extra_budget(ru: int, charge_ru: float, offset_s: float) -> None:
    level = measured(ru, charge_ru, offset_s=offset_s)
    assert not level.is_computed
    assert level.reads_per_s == pytest.approx(ru / charge_ru, rel=0.02)
    assert level.overload is not None
    assert level.overload.refused == pytest.approx(1 - 1 / OVERLOAD, abs=0.02)
    calm = level.calm
    assert calm is not None
    assert calm.throttled == 0
    assert calm.refused < 0.001
    assert calm.result.due == pytest.approx(
        CALM * ru / charge_ru * len(calm.result.seconds), rel=0.02
    )  # of counted seconds only


def test_level_that_used_burst_capacity_is_refused() -> None:
    level = measured(400, emulated=False, saved_ru=400 * 300)
    assert level.overload is not None
    assert level.overload.accepted_per_s > BURST * 400
    assert level.is_computed
    assert "burst capacity" in level.outcome.reason
    assert level.reads_per_s == 400  # by the charge, not by what was saved up
    reported_run = reported(level)
    assert reported_run.exit_code == 1
    assert any("burst capacity" in complaint for complaint in reported_run.complaints)


def throttling(level: Level, share_through: float) -> Callable[[float], LevelTrial]:
    """Return trials of a machine that gets only a share of all requests to the account and back."""
    attempt = Account(10 * level.ru, level.charge_ru).attempt(level, 3)

    def tried(share: float) -> LevelTrial:
        trial = attempt(share)
        seconds = tuple(
            replace(second, latencies_s=second.latencies_s[: int(len(second.latencies_s) * share_through)])
            for second in trial.result.seconds
        )
        return replace(trial, result=replace(trial.result, seconds=seconds))

    return tried


@pytest.mark.parametrize("emulated", [True, False])
def test_level_beyond_this_machine_is_computed(*, emulated: bool) -> None:
    measured_level = measure_level(LEVEL, throttling(LEVEL, 0.5), emulated=emulated)
    assert measured_level.is_computed
    assert measured_level.reads_per_s == 400
    assert "this machine" in measured_level.outcome.reason
    reported_run = reported(measured_level)
    assert reported_run.exit_code == 0
    rows = {row.figure: row for row in reported_run.rows if row.main}
    assert rows["reads/s"].note == "computed"
    assert rows["p99"].value is None
    assert rows["p99"].note == "computed"
    assert all(row.value is not None for name, row in rows.items() if name not in {"p50", "p99"})


def test_nearly_reached_level_keeps_its_measurement() -> None:
    """On two slow cores no level from 4,000 RU/s on had a p99, and the headline ended at 1,000 RU/s."""
    levels = list[float]()
    slow = throttling(LEVEL, 0.87)
    idle = Account(400, 1.0).attempt(LEVEL, 3)

    def attempt(share: float) -> LevelTrial:
        levels.append(share)
        return slow(share) if share == OVERLOAD else idle(share)

    measured_level = measure_level(LEVEL, attempt, emulated=True)
    assert levels[:3] == [OVERLOAD] * 3  # it is tried again
    assert not measured_level.is_computed
    reported_run = reported(measured_level)
    reads = row(reported_run, "reads/s")
    assert (reads.note, reads.mark) == ("at least", "+")
    assert reads.value == pytest.approx(0.87 * 1.1 * 400, rel=0.02)
    assert row(reported_run, "p99").value == pytest.approx(4_000, rel=0.01)
    assert row(reported_run, "429s at 110 % load").mark == "="
    assert "400 RU/s carry at least 382 for 23 USD, p99 4 ms" in reported_run.sentence
    assert reported_run.exit_code == 0


def test_ctrl_c_leaves_a_report_of_the_levels_before() -> None:
    planned = Sweep(SweepOptions(), levels=(400, 1_000, 4_000), sizes_kb=(1,), duration_s=6)
    reported_run = report(replace(planned, measured=[measured(400)]), Ending(interrupted=True), load_prices())
    assert reported_run.interrupted
    assert "1,000 RU/s, 4,000 RU/s: not measured." in reported_run.notes
    assert row(reported_run, "reads/s").value == pytest.approx(400, rel=0.02)


def test_unreachable_deadline_is_reported() -> None:
    """An account 70 ms away gave 0 of 400 reads/s, computed, and exit code 0."""
    attempt = throttling(LEVEL, 0.0)

    def far(share: float) -> LevelTrial:
        trial = attempt(share)
        return replace(trial, timeouts=trial.result.due)

    reported_run = reported(measure_level(LEVEL, far, emulated=False), account="cosmos://account/db")
    assert reported_run.exit_code == 1
    assert "met the service's deadline of 50 ms: the account is too far away" in reported_run.failures[0]


def test_answer_is_about_the_highest_requested_level() -> None:
    attempt = Account(400, 1.0).attempt(LEVEL, 3)
    small = measure_level(LEVEL, attempt, emulated=True)
    reported_run = reported(small, replace(LEVEL, ru=11_000, outcome=COMPUTED_FOR("this machine is slow")))
    assert reported_run.sentence == (
        "On an emulator, each 100 RU/s carry 100 reads/s of 1 KB for 5.84 USD a month; "
        "11,000 RU/s carry by calculation 11,000 for 642 USD. "
        "How sure: no level above 400 RU/s was measured; further reads/s are the RU/s divided by the measured charge. "
        "Assumed: Cosmos DB's latency, charges as Azure documents them, RU/s in full use."
    )
    out = io.StringIO()
    print_report(reported_run, Console(file=out, width=80))
    assert any(line.startswith("emulated ") for line in out.getvalue().splitlines())
    assert list(to_json(reported_run)["emulated"]) == ["400 RU/s", "11,000 RU/s"]
    real = reported(small, account="cosmos://account/db")
    assert real.sentence.startswith("Each 100 RU/s carry")
    assert not to_json(real)["emulated"]
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("11,000 RU/s  ")]
    assert line.split()[2:4] == ["11,000", "="]
    assert line.endswith(" 22")


def test_levels_of_autoscale_are_priced_as_autoscale() -> None:
    """The answer said 234 USD beside an autoscale price of 350 in the table."""
    level = Level(ru=4_000, size_kb=1, charge_ru=1.0, publish_ru=6.25, outcome=COMPUTED_FOR("this machine is slow"))
    reported_run = reported(level, options=SweepOptions(autoscale=True))
    assert reported_run.sentence.startswith(
        "On an emulator, each 100 RU/s carry 100 reads/s of 1 KB for 8.76 USD a month by autoscale; "
        "4,000 RU/s carry by calculation 4,000 for 350 USD. "
    )
    subject = "4,000 RU/s, autoscale"
    assert row(reported_run, "USD/month autoscale", subject).value == pytest.approx(350.4)
    reads_a_month = 4_000 * 730 * 3_600
    assert row(reported_run, "USD per billion reads", subject).value == pytest.approx(350.4 / reads_a_month * 1e9)


def test_the_answer_has_the_interval_of_the_reads() -> None:
    """Nothing said how sure the reads/s of the first line were."""
    level = measure_level(LEVEL, Account(400, 1.0).attempt(LEVEL, 6), emulated=True)
    assert (
        "How sure: 400 to 400 reads/s at 400 RU/s (95 % interval over the 6 seconds of a trial). "
        in reported(level).sentence
    )
    short = measure_level(LEVEL, Account(400, 1.0).attempt(LEVEL, 3), emulated=True)
    assert "How sure: unknown, fewer than 5 seconds. " in reported(short).sentence


def test_a_plan_plots_a_curve_for_each_size_of_lists() -> None:
    finding = COMPUTED_FOR("this machine is slow")
    levels = tuple(
        Level(ru=ru, size_kb=size_kb, charge_ru=float(size_kb), publish_ru=6.25, outcome=finding)
        for size_kb in (1, 4)
        for ru in (2_000, 4_000)
    )
    sweep = reported(*levels, options=SweepOptions(autoscale=True))
    *_, throughput, _ = pictures(a_plan(), sweep)
    assert [(curve.name, curve.x, curve.y) for curve in throughput.curves] == [
        ("autoscale, 1 KB", (2_000, 4_000), (2_000, 4_000)),
        ("autoscale, 4 KB", (2_000, 4_000), (500, 1_000)),
    ]


def test_level_with_a_late_generator_has_no_latency() -> None:
    attempt = Account(400, 1.0).attempt(LEVEL, 3)

    def late(share: float) -> LevelTrial:
        return replace(trial := attempt(share), result=delayed(trial.result))

    reported_run = reported(measure_level(LEVEL, late, emulated=True))
    assert row(reported_run, "p99").value is None
    assert any("the generator itself was 30 ms late" in note for note in reported_run.notes)


def test_popular_lists_at_90_percent_load_break_the_run_of_an_account() -> None:
    full = Account(400, 1.0).attempt(LEVEL, 3)
    lossy = throttling(LEVEL, 0.8)
    measured_level = measure_level(
        LEVEL, lambda share: full(share) if share == OVERLOAD else lossy(share), emulated=False
    )
    reported_run = reported(measured_level, account="cosmos://account/db")
    assert reported_run.exit_code == 3
    assert row(reported_run, "p99").value is None


def test_levels_that_were_not_measured_are_named_in_the_order_of_the_measurement() -> None:
    planned = Sweep(SweepOptions(), levels=(400, 1_000), sizes_kb=(1, 4), duration_s=6)
    notes = report(replace(planned, measured=[measured(400)]), Ending(interrupted=True), load_prices()).notes
    assert "1,000 RU/s, 1 KB, 400 RU/s, 4 KB, 1,000 RU/s, 4 KB: not measured." in notes


def reported(*levels: Level, account: str | None = None, options: SweepOptions | None = None) -> Report:
    planned = Sweep(
        options or SweepOptions(account=account),
        levels=tuple({level.ru for level in levels}),
        sizes_kb=tuple({level.size_kb for level in levels}),
        duration_s=6,
    )
    return report(replace(planned, measured=list(levels)), Ending(), load_prices())


def row(report: Report, figure: str, subject: str = "400 RU/s") -> Row:
    report_row = report.row(subject, figure)
    assert report_row is not None
    return report_row


def test_sweep_uses_a_separate_database_in_the_account() -> None:
    url = own_url("cosmos://account.example/theirs?ru=400&max_ru=500&region=West+US&ca=/a.pem", Throughput(11_000))
    assert url.startswith("cosmos://account.example/hotplate-bench-")
    assert url.endswith("?region=West+US&ca=%2Fa.pem&failover=no&ru=11000")
    assert own_url("cosmos://a/db", Throughput(4_000, autoscale=True)).endswith("&ru=autoscale-4000")


def test_invalid_options_are_refused() -> None:
    wrong = {
        "levels": ("450", "300", "fast", "400,100k"),
        "item_kb": ("0", "a"),
        "duration": ("1s",),
        "latency": ("4ms",),
    }
    with pytest.raises(BenchMisused, match=r"1,000 to 1,000,000 RU/s in steps of 1,000, not '400'"):
        plan(SweepOptions(autoscale=True, levels="400,1k"))
    assert plan(SweepOptions(autoscale=True)).levels == (2_000, 4_000, 10_000, 11_000)
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(BenchMisused):
            plan(replace(SweepOptions(), **{name: value}))  # type: ignore[arg-type]  # fields by name


def test_each_started_hour_is_charged() -> None:
    planned = plan(SweepOptions(account=URL, levels="400,1k,11k"))
    total, price, _ = cost(planned, 2, load_prices(), now=3600 * 100.0)
    assert "11,400 RU/s in 2 region(s), for some" in total
    assert "touches 1" in price
    _, price, _ = cost(planned, 2, load_prices(), now=3600 * 100.0 - 1)
    assert "touches 2" in price
    assert f"{load_prices().ru_hours(11_400 * 2, regions=2):,.2f} USD" in price
