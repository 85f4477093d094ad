"""`make quality`: what it says of a bar, of data that are not there, and what it writes into the docs."""

from pathlib import Path
from typing import Any

import pytest

from bench.micro import quality
from bench.micro.quality import BEGIN, DATA_SETS, END, PAGE, Trainings, check_bars, described, page_with


class Known(Trainings):
    """Trainings whose reports are known: nDCG as a bar wants it, recall a little less."""

    def __init__(self) -> None:
        self.commands = list[tuple[str, ...]]()

    def report(self, *options: str) -> dict[str, Any]:
        self.commands.append(options)
        ndcg = 0.37 if "100" in options else 0.297
        metrics = {"ndcg": ndcg, "recall_at_k": 0.3399}
        intervals = {name: [value - 0.01, value + 0.01] for name, value in metrics.items()}
        params = {"factors": 512, "regularization": 30.0, "alpha": 6.0}
        return {"engine": "als", "params": params, "evaluation": {"model": metrics, "intervals": intervals}}


def test_a_bar_is_held_by_the_figure_of_its_command() -> None:
    trainings = Known()
    lines = list(check_bars(DATA_SETS[0], trainings))
    assert [line[:4] for line in lines] == ["PASS", "PASS", "MISS", "PASS"]
    assert lines[2] == (
        "MISS  Online Retail, held-out users, recall@20: 0.3399 (0.3299 to 0.3499), at least 0.34; als 512/30/6"
    )
    assert trainings.commands[0] == ()
    assert trainings.commands[3][-2:] == ("-k", "100")


def test_an_engine_is_named_with_its_parameters() -> None:
    report = {"engine": "neighbours", "params": {"weighting": "tfidf", "neighbours": 5}}
    assert described(report) == "neighbours tfidf 5"


def test_without_the_data_it_says_so_and_leaves_the_docs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = PAGE.read_text()
    assert quality.main([str(tmp_path)]) == 0
    assert f"Online Retail is skipped: {tmp_path}/online-retail" in capsys.readouterr().out
    assert PAGE.read_text() == before


def test_the_table_goes_between_its_marks() -> None:
    assert page_with(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"
    assert page_with(PAGE.read_text(), "new\n") != PAGE.read_text()
    with pytest.raises(ValueError, match="has no lines"):
        page_with("nothing", "new")
