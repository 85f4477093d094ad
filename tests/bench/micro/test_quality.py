"""`make quality`: what it says of a bar, of data that are not there, and what it writes into the docs."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from bench.micro import quality
from bench.micro.quality import (
    BEGIN,
    DATA_SETS,
    END,
    PAGE,
    Trainings,
    check_bars,
    described,
    page_with,
    reference_split,
)
from offline.input.matrix import to_matrix


class Known(Trainings):
    """Trainings whose reports are known: nDCG as a bar wants it, recall a little less."""

    def __init__(self) -> None:
        self.commands = list[tuple[str, ...]]()
        self.on_reference = list[bool]()

    def report(self, *options: str, on_reference: bool = False) -> dict[str, Any]:
        self.commands.append(options)
        self.on_reference.append(on_reference)
        ndcg = 0.37 if "100" in options else 0.297
        metrics = {"ndcg": ndcg, "recall_at_k": 0.3399}
        intervals = {name: [value - 0.01, value + 0.01] for name, value in metrics.items()}
        params = {"factors": 512, "regularization": 30.0, "alpha": 6.0}
        baselines = {"popularity": {"ndcg": 0.0631, "recall_at_k": 0.0723}}
        found = {"model": metrics, "intervals": intervals, "baselines": baselines}
        return {"engine": "als", "params": params, "evaluation": found}


def test_a_bar_is_held_by_the_figure_of_its_command() -> None:
    trainings = Known()
    lines = list(check_bars(DATA_SETS[0], trainings))
    assert [line[:4] for line in lines] == ["PASS", "PASS", "MISS", "PASS"]
    assert lines[2] == (
        "MISS  Online Retail, held-out users, recall@20: 0.3399 (0.3299 to 0.3499), at least 0.34; als 512/30/6; "
        "popularity 0.0723, and 0.0694 where the bar was measured"
    )
    assert trainings.on_reference == [True, True, False, False]
    assert trainings.commands[0] == ()
    assert trainings.commands[3][-2:] == ("-k", "100")


def test_the_reference_draw_gives_its_numbers_to_the_pairs_by_user_and_item() -> None:
    pairs = [(user, item) for user in ("2", "10", "9") for item in ("b", "a")]
    frame = pl.DataFrame({"user": [user for user, _ in pairs], "item": [item for _, item in pairs]})
    matrix = to_matrix(frame.with_columns(weight=pl.lit(1.0)))
    ordered = sorted(pairs, key=lambda pair: (int(pair[0]), pair[1]))
    draw = dict(zip(ordered, np.random.RandomState(42).random_sample(6), strict=True))
    parts = reference_split(matrix)
    for column, item in enumerate(("a", "b")):  # of three pairs, the nearest number to 0.75 * 3 is learnt from
        last = max((pair for pair in pairs if pair[1] == item), key=lambda pair: draw[pair])[0]
        assert parts.test[:, [column]].nonzero()[0].tolist() == [matrix.user_ids.index(last)]
    assert parts.train.nnz + parts.test.nnz == matrix.user_items.nnz


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
