"""Named lists from the command line and from a pipeline file: one release, each list by its own options."""

import json
from pathlib import Path
from typing import Any

import pytest

import hotplate as library
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.interactions import write
from tests.support.service import ids


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture
def basket(tmp_path: Path, model: Path) -> Path:
    write(tmp_path / "never.txt", "p01\np02\n")
    return write(tmp_path / "basket.toml", f'model = "{model}"\nlist_length = 3\nexclude = "never.txt"\n')


def looked_up(url: str, name: str) -> list[str]:
    output: Any = json_of("lookup", "u001", "--store", url, "--list", name)
    assert output["list"] == name
    return ids(output)


def test_models_are_published_as_named_lists_of_one_release(url: str, model: Path, basket: Path) -> None:
    done = json_of("publish", "--list", f"home={model}", "--list", f"basket={basket}", "--store", url)
    manifest = done["release"]
    assert (manifest["about"]["list"], list(manifest["named"])) == ("home", ["basket"])
    assert manifest["counts"]["user"] == manifest["counts"]["user@basket"] > 0
    assert (len(looked_up(url, "home")), len(looked_up(url, "basket"))) == (10, 3)
    assert (
        json_of("lookup", "u001", "--store", url)["items"]
        == json_of("lookup", "u001", "--store", url, "--list", "home")["items"]
    )
    failed(hotplate("lookup", "u001", "--store", url, "--list", "nothing"), "it has home, basket", code=2)
    assert "also in the list basket" in succeeded("users", "find", "u001", "--store", url)
    assert "of the lists home, basket" in succeeded(
        "plan", "--from-release", url, "--peak-rps", "100", "--why", "users_then"
    )
    assert library.verify(url).named == {"basket": tuple(manifest["segments"])}


def test_a_default_list_needs_no_name_and_gates_apply_to_each_list(url: str, model: Path, basket: Path) -> None:
    both = ("publish", model, "--list", f"basket={basket}", "--store", url)
    refused = hotplate(*both, "--gate", "shortest_list=4")
    failed(refused, "basket:shortest_list: 3 is below 4", code=3)
    verdicts = json_of(*both, "--gate", "shortest_list=4", "--gate", "basket:shortest_list=2", "--gate", "overlap=0.9")[
        "gates"
    ]
    gates = ["shortest_list", "overlap@10", "basket:shortest_list", "basket:overlap@10"]
    assert {verdict["gate"]: verdict["passed"] for verdict in verdicts} == dict.fromkeys(gates, True)
    again = json_of(*both, "--gate", "overlap=0.9")["gates"]
    measured = {verdict["gate"]: verdict["measured"] for verdict in again}
    assert {measured[gate] for gate in ("overlap@10", "basket:overlap@10", "basket:users_kept")} == {1}
    failed(hotplate(*both, "--gate", "email:coverage=0.1"), "is of the list 'email'", code=2)
    without = hotplate("publish", model, "--store", url)
    failed(without, "names_kept: 0 is below 1 (without basket (list of users) of", code=3)
    assert without.stderr.index("--list NAME=SOURCE") < without.stderr.index("--force"), without.stderr
    plain = json_of("publish", model, "--store", url, "--force")["release"]
    assert plain["named"] == {}
    assert not plain["about"].keys() & {"list", "lists"}


def test_a_release_without_item_attributes_of_the_live_one_is_refused(url: str, model: Path, tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "item,price,stock\np01,5,1\n")
    fewer = write(tmp_path / "fewer.csv", "item,price\np01,5\n")
    json_of("publish", model, "--store", url, "--item-attributes", items)
    json_of("publish", model, "--list", f"basket={model}", "--store", url, "--item-attributes", items)
    refused = hotplate("publish", model, "--store", url, "--list", f"basket={model}", "--item-attributes", fewer)
    failed(refused, "is below 1 (without stock (number) of", code=3)
    forgotten = hotplate("publish", model, "--store", url, "--list", f"basket={model}")
    failed(forgotten, "is below 1 (without price (number), stock (number) of", code=3)
    sentence = forgotten.stderr
    assert sentence.index("--item-attributes") < sentence.index("--force"), sentence
    json_of("publish", model, "--store", url, "--list", f"basket={model}", "--force")


def test_release_that_hides_attributes_which_the_live_one_shows_is_refused(
    url: str, model: Path, tmp_path: Path
) -> None:
    items = write(tmp_path / "items.csv", "item,price,image,margin\np01,5,a.jpg,1\n")
    options = ("publish", model, "--store", url, "--item-attributes", items)
    shown = json_of(*options, "--show", "price, image")["release"]["about"]["item_attributes"]["shown"]
    assert shown == ["price", "image"]
    refused = hotplate(*options, "--show", "price")
    failed(refused, "names_kept: 0.8 is below 1 (without image (in answers) of", code=3)
    assert refused.stderr.index("--show with those that were in answers") < refused.stderr.index("--force")
    printed = succeeded(*options, "--show", "price", "--show", "image,margin")
    assert "shown in answers: price, image, margin" in printed


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("prise", "The attribute 'prise': "),
        ("prise", "did you mean price?"),
        ("title", "The shown attribute title: an item has this field already; rename the column in"),
        ("title", "Titles of answers are those of `train` or `import`, as by --titles FILE"),
    ],
)
def test_attribute_that_cannot_be_shown_is_refused_by_name(
    url: str, model: Path, tmp_path: Path, names: str, sentence: str
) -> None:
    items = write(tmp_path / "items.csv", "item,price,title\np01,5,A\n")
    failed(hotplate("publish", model, "--store", url, "--item-attributes", items, "--show", names), sentence, code=2)
    alone = hotplate("publish", model, "--store", url, "--show", "price")
    failed(alone, "Shown attributes are given without a file of attributes; give that, too", code=2)


def test_an_attribute_that_changes_its_kind_never_goes_live_unforced(
    url: str, clicks: Path, model: Path, tmp_path: Path
) -> None:
    items = write(tmp_path / "items.csv", "item,price\np01,5\np02,7\n")
    texts = write(tmp_path / "texts.csv", "item,price\np01,-\np02,on request\n")
    live = json_of("publish", model, "--store", url, "--item-attributes", items)["release"]["release"]
    refused = hotplate("publish", model, "--store", url, "--item-attributes", texts)
    failed(refused, f"names_kept: 0 is below 1 (without price (number) of {live})", code=3)
    sentence = refused.stderr
    assert sentence.index("--attribute NAME=number") < sentence.index("--force"), sentence
    ready = ("publish", model, "--store", url, "--item-attributes", texts, "--no-activate")
    written = json_of(*ready, code=3)["release"]["release"]
    failed(hotplate("releases", "canary", written, "--store", url), "refused by names_kept", code=3)
    assert json_of("lookup", "u001", "--store", url)["release"] == live
    pipeline = f"""
        [train]
        data = "{clicks}"
        params = "factors=4,iterations=1"
        [publish]
        store = "{url}"
        item_attributes = "{texts}"
        attribute = {{price = "text"}}
        [run]
        work = "{tmp_path / "work"}"
        """
    done = hotplate("run", write(tmp_path / "nightly.toml", pipeline))
    assert done.returncode == 3
    assert "attribute in [publish]" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("argument", ["basket", "=model", "a/b=model", "basket="])
def test_an_invalid_name_or_source_is_refused(url: str, model: Path, argument: str) -> None:
    failed(hotplate("publish", model, "--list", argument, "--store", url), "--list", code=2)


def test_nothing_to_publish_is_refused(url: str) -> None:
    failed(hotplate("publish", "--store", url), "give a model, or --list NAME=MODEL", code=2)


def test_computed_lists_are_imported_by_name(url: str, tmp_path: Path) -> None:
    home = write(tmp_path / "home.csv", "user,item,score\n1,a,0.9\n1,b,0.5\n2,b,0.8\n")
    email = write(tmp_path / "email.csv", "user,item,score\n1,c,0.9\n3,d,0.5\n")
    write(tmp_path / "popular.csv", "item,score,segment\nz,1,\ny,1,France\n")
    options = write(tmp_path / "email.toml", 'lists = "email.csv"\npopular = "popular.csv"\n')
    manifest = json_of("import", home, "--list", f"email={options}", "--store", url)["release"]
    assert manifest["counts"] == {"popular": 1, "popular@email": 2, "user": 2, "user@email": 2}
    assert json_of("lookup", "1", "--store", url, "--list", "email")["items"][0]["id"] == "c"
    assert json_of("lookup", "2", "--store", url, "--list", "email")["items"][0]["id"] == "z"
    assert json_of("lookup", "9", "--store", url)["items"][0]["id"] == "b"
    json_of("import", "--list", f"home={home}", "--list", f"email={email}", "--store", url)
    assert json_of("lookup", "1", "--store", url)["list"] == "home"


def test_a_pipeline_publishes_its_named_lists(url: str, tmp_path: Path, clicks: Path, model: Path) -> None:
    never = write(tmp_path / "never.txt", "p01\n")
    text = f"""
        [train]
        data = "{clicks}"
        params = "factors=4,iterations=1"
        [publish]
        store = "{url}"
        [lists.basket]
        exclude = "{never}"
        list_length = 4
        [lists.email]
        model = "{model}"
        [gates]
        "email:shortest_list" = 2
        [run]
        work = "{tmp_path / "work"}"
        """
    pipeline = write(tmp_path / "nightly.toml", text)
    assert "basket, email" in succeeded("run", pipeline, "--check")
    done = json.loads(succeeded("run", pipeline))
    assert (done["outcome"], done["gates"][0]["gate"]) == ("published", "email:shortest_list")
    assert done["lists"]["user@basket"] == done["lists"]["user@email"] == done["lists"]["user"]
    assert (len(looked_up(url, "basket")), len(looked_up(url, "email"))) == (4, 10)
    assert json.loads(succeeded("run", pipeline))["outcome"] == "unchanged"
    write(never, "p02\n")
    assert json.loads(succeeded("run", pipeline))["outcome"] == "published"
    failed(
        hotplate("run", write(tmp_path / "wrong.toml", text.replace("list_length", "keep"))), "has no key keep", code=2
    )
