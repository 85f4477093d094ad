"""What requests may say: every parameter within its bounds is understood, and every other is refused with its name."""

import json
import re
from contextlib import suppress
from urllib.parse import quote, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotplate.serve.api.parameters import QueryParser, parse_batch, parse_fold_in
from hotplate.serve.api.schemas import NoQuery
from hotplate.serve.lists.options import PagedSelection, Selection
from hotplate.serve.problems import Problem

PARSER = QueryParser(PagedSelection, "GET /v1/popular")
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
NAMES = st.sampled_from(["users", "n", "exclude", "fields", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
)
EXAMPLES = settings(max_examples=60, deadline=None)
FIELDS = st.sampled_from(["id", "id,score", "id,score,title"])


@EXAMPLES
@given(n=st.integers(1, 1000), exclude=st.lists(IDS, max_size=5), fields=FIELDS, segment=IDS)
@example(n=1, exclude=["a,b", "%2C", "+", "a b", "&", "="], fields="id", segment="?&=+%")
def test_properly_encoded_parameters_are_understood(n: int, exclude: list[str], fields: str, segment: str) -> None:
    ids = ",".join(quote(item, safe="") for item in exclude)
    query = PARSER.parse(f"exclude={ids}&n={n}&fields={fields}&segment={quote(segment, safe='')}")
    assert (query.n, query.fields, query.segment) == (n, fields, segment)
    assert set(exclude) <= set(query.exclude)
    with_commas = {item for item in exclude if "," in item}
    assert set(query.exclude) == set(exclude) | {part for item in with_commas for part in item.split(",") if part}


@EXAMPLES
@given(st.lists(IDS.filter(lambda item: "," not in item), max_size=5))
@example([str(number) for number in range(1000, 1200)])
def test_encoded_and_plain_commas_between_ids_are_equal(ids: list[str]) -> None:
    query = PARSER.parse(urlencode({"exclude": ",".join(ids)}))
    assert set(query.exclude) - {",".join(ids)} == set(ids) - {",".join(ids)}
    assert set(ids) <= set(query.exclude)


@EXAMPLES
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
@example("n=1&n=1")
@example("%FF=1")
@example("exclude=%FF")
@example("n=%F0%9F")
@example("&".join(f"{n}=" for n in range(30)))
def test_any_query_is_understood_or_refused(raw: str) -> None:
    with suppress(Problem):
        assert 1 <= PARSER.parse(raw).n <= 1000


@EXAMPLES
@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_understood_or_refused(body: bytes) -> None:
    with suppress(Problem):
        assert 1 <= parse_batch(body).n <= 1000


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("n=0", "n cannot be used: expected `int` >= 1"),
        ("n=" + "9" * 100, "n cannot be used"),
        ("k=3", f"unknown field `k`; GET /v1/popular takes {', '.join(Selection.__struct_encode_fields__)}"),
        ("n=3&n=3", "n is given twice"),
        ("segment=" + "x" * 257, "segment cannot be used: expected `str` of length <= 256"),
        ("exclude=" + ",".join(map(str, range(201))), "exclude cannot be used: expected `array` of length <= 200"),
        ("exclude=a," + "%C3%A9" * 129, "exclude[1] cannot be used: an id has 1 to 256 bytes"),
        ("exclude=%FF", "exclude in the query is not percent-encoded UTF-8"),
    ],
)
def test_a_refusal_names_the_parameter_and_its_bound(raw: str, sentence: str) -> None:
    with pytest.raises(Problem, match=re.escape(sentence)) as raised:
        PARSER.parse(raw)
    assert raised.value.status == 400


@pytest.mark.parametrize("n", ["5", "5.0"])
@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ('"items": ["1"], "recency": "0.5"', "recency cannot be used: expected `float`, got `str`"),
        ('"items": [{"id": "1", "weight": "2"}]', "weight cannot be used: expected `float | null`, got `str`"),
        ('"items": ["1"], "n": "7"', "n cannot be used"),
    ],
)
def test_text_is_no_number_beside_any_n(n: str, members: str, sentence: str) -> None:
    with pytest.raises(Problem, match=re.escape(sentence)):
        parse_fold_in(f'{{"n": {n}, {members}}}'.encode())
    assert parse_fold_in(f'{{"n": {n}, "items": ["1"]}}'.encode()).n == 5


@pytest.mark.parametrize("raw", ["n=3", "n=3.0", "n=%33"])
def test_a_whole_number_is_taken_as_in_a_body(raw: str) -> None:
    assert PARSER.parse(raw).n == 3


@pytest.mark.parametrize("raw", ["n=", "n=3.5", "n=true", "n=-1", "n=3x", "n=%D9%A3"])
def test_other_text_is_no_count(raw: str) -> None:
    with pytest.raises(Problem, match="n cannot be used: expected `int`"):
        PARSER.parse(raw)


def test_route_refuses_parameters_of_other_routes() -> None:
    taken = ", ".join(name for name in Selection.__struct_encode_fields__ if name != "segment")
    with pytest.raises(Problem, match=rf"`segment`; GET /v1/similar/\{{item\}} takes {taken}"):
        QueryParser(PagedSelection, "GET /v1/similar/{item}", ["segment"]).parse("segment=x")
    with pytest.raises(Problem, match="`n`; POST /v1/recommendations takes nothing in its query"):
        QueryParser(NoQuery, "POST /v1/recommendations").parse("n=3")
