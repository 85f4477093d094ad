"""The declaration of options: one that only some ways of asking have is an error at import."""

import sys

from hotplate.base.recommendations import RequestOptions
from hotplate.serve.lists.options import PagedSelection
from tests.support.paths import ROOT
from tests.support.processes import run_process


def test_option_that_only_calls_have_is_an_error_at_import() -> None:
    program = (
        "from hotplate.base.recommendations import RequestOptions\n"
        "RequestOptions.__optional_keys__ |= {'not_an_option'}\n"
        "import hotplate.serve.lists.options\n"
    )
    done = run_process(sys.executable, "-c", program, code=1, cwd=ROOT)
    assert done.stderr.splitlines()[-1].startswith("ImportError: the options of PagedSelection and of RequestOptions")


def test_options_keep_what_they_were_given() -> None:
    selection = PagedSelection(
        n=3, exclude=("b", "a"), where="price<5", fields="id", list="home", segment="x", after="0"
    )
    assert {*RequestOptions.__optional_keys__} - {*selection.__struct_fields__} == {"timeout_s"}
    assert selection.excluded == {b'"a"', b'"b"'}
    assert selection.is_filtered
    assert not PagedSelection(n=3, list="home", segment="x", after="0").is_filtered
