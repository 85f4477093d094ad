"""The report of an evaluation as a page: whatever titles say is text, and a real browser requests nothing."""

from pathlib import Path
from typing import Any

import pytest

from hotplate.cli.evaluation_page import page
from hotplate.offline.evaluate.report import gather
from tests.support.evaluated import HOSTILE, evaluated_model
from tests.support.page import Outline, opened

TRIALS = [
    {"engine": engine, "params": {"factors": 8}, "iterations": 8, "ndcg": ndcg, "se": 0.01, "seconds": 0.5}
    for engine, ndcg in (("als", 0.2), ("neighbours", 0.3), ("als", 0.25))
]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = gather(evaluated_model(tmp_path_factory.mktemp("evaluated")))
    return found | {"tuning": {"objective": "ndcg@5", "split": {}, "trials": TRIALS, "best": 1}}


def test_the_page_holds_all_that_it_needs_and_titles_are_text(facts: dict[str, Any]) -> None:
    text = page(facts)
    outline = Outline()
    outline.feed(text)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert not outline.tags & {"script", "iframe", "object", "embed", "form", "b>data"}
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;data&lt;/b&gt;.csv" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert HOSTILE[-60:] not in text
    assert text.count("<svg") == 8  # each plot for a wide and a narrow page
    assert "#0a000" not in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text


def test_its_first_line_is_the_verdict(facts: dict[str, Any]) -> None:
    text = page(facts)
    assert f"<h1>{facts['verdict']['sentence']}.</h1>" in text
    assert 'class="verdict bad"' not in text
    beaten = {"sentence": "Popularity ranks better than this <als> model", "good": False, "remarks": ()}
    text = page(facts | {"verdict": beaten})
    assert "<h1>Popularity ranks better than this &lt;als&gt; model.</h1>" in text
    assert 'class="verdict bad"' in text


def test_a_model_without_an_evaluation_has_a_page_too(facts: dict[str, Any]) -> None:
    text = page(facts | {"subjects": [], "split": None, "tuning": None})
    assert text.count("<svg") == 4


@pytest.mark.soak
def test_a_browser_that_opens_the_page_makes_no_request(facts: dict[str, Any], tmp_path: Path) -> None:
    written = tmp_path / "report.html"
    written.write_text(page(facts))
    assert opened(written, tmp_path, scheme=0) == []
    assert opened(written, tmp_path, scheme=1) == []
