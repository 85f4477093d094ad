"""`python -m bench.micro`: which benchmarks run and how long, what is printed and written, and the suite in process."""

import json
from pathlib import Path

import pytest

from bench.micro import __main__ as command
from bench.micro import training
from bench.micro.rounds import Effort, Figure, Outcome, at_most


def test_the_suite_in_process_gives_its_figures() -> None:
    measured = command.measure_in_process(Effort(rounds=1, users=1_000, round_s=0.002))
    named = {one.name: one for one in measured if isinstance(one, Figure)}
    assert len(named) == len(measured)
    for part in (
        "encode", "seal", "cut", "decode", "compress", "decompress", "get", "get many",
        "lookup[zstd]", "render[json]", "turn[json]",
        "catalogue", "matrix", "als", "recommend", "metrics", "evaluate",
    ):  # fmt: skip
        assert named[f"in process, {part}: CPU"].median > 0
    assert str(named["in process, get / get of a dict: CPU"].goal) == "≤ 3"
    assert named["in process, encode: CPU"].unit == "µs/list"


def test_a_benchmark_that_fails_leaves_the_others_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(effort: Effort) -> list[Outcome]:
        raise RuntimeError(f"no [server] in {effort.rounds} rounds")

    def give(effort: Effort) -> list[Outcome]:
        return [Figure("size", "MB", [float(effort.users)], at_most(1))]

    monkeypatch.setattr(training, "RETAIL", tmp_path / "none.parquet")
    benchmarks = {"http_peer": fail, "files": give, "retail": training.measure_retail}
    monkeypatch.setattr(command, "BENCHMARKS", benchmarks)
    written = tmp_path / "results.json"
    assert command.main(["--rounds", "2", "--users", "7", "--out", str(written)]) == 1
    failed, given, skipped = json.loads(written.read_text())["figures"]
    assert failed == {"name": "http_peer", "failed": "no [server] in 2 rounds"}
    assert given["met"] is False
    assert "none.parquet" in skipped["skipped"]
    printed = capsys.readouterr().out
    assert "http_peer: FAILED, no [server] in 2 rounds" in printed
    assert "retail: skipped" in printed
    assert "NO" in printed
    assert "≤ 1" in printed


def test_the_short_form_measures_little_of_all_but_the_long_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    efforts = dict[str, Effort]()

    def recording(name: str) -> command.Measure:
        def measure(effort: Effort) -> list[Outcome]:
            efforts[name] = effort
            return []

        return measure

    monkeypatch.setattr(command, "BENCHMARKS", {name: recording(name) for name in ("retail", "http_peer")})
    assert command.main(["--short", "--seconds", "0.1", "--out", str(tmp_path / "found")]) == 0
    assert efforts == {"http_peer": Effort(command.SHORT.rounds, command.SHORT.users, 0.1)}
    assert command.main(["--short", "--only", "retail", "--out", str(tmp_path / "found")]) == 0
    assert efforts["retail"] == command.SHORT


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--users", "0"], ["--seconds", "0"], ["--only", "nothing"]])
def test_a_misuse_of_the_command_exits_with_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(wrong)
    assert stopped.value.code == 2
