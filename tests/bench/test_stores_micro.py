"""The figures of the pure parts, and the short form of all figures."""

from pathlib import Path

import pytest

from bench.micro import __main__ as command
from bench.micro import computing
from bench.micro.rounds import Effort, Figure, Outcome


def test_the_pure_parts_have_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "CALLS", 200)
    found = computing.measure(Effort(rounds=1, users=3_000, round_s=0.1))
    names = [one.name for one in found]
    for part in ("encode", "cut", "decode", "compress", "open", "ALS", "top 20", "metrics"):
        assert any(part in name for name in names), part
    assert all(value >= 0 for one in found if isinstance(one, Figure) for value in one.values)


def test_the_short_form_measures_little_of_all_but_the_long_subjects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict[str, Effort]()

    class Subject:
        def __init__(self, name: str) -> None:
            self.__name__ = name

        def measure(self, effort: Effort) -> list[Outcome]:
            asked[self.__name__] = effort
            return []

    monkeypatch.setattr(command, "SUBJECTS", (Subject("a.retail"), Subject("a.endpoint")))
    assert command.main(["--short", "--seconds", "0.1", "--out", str(tmp_path / "found")]) == 0
    assert asked == {"a.endpoint": Effort(command.SHORT.rounds, command.SHORT.users, 0.1)}
    assert command.main(["--short", "--only", "retail", "--out", str(tmp_path / "found")]) == 0
    assert asked["a.retail"] == command.SHORT
