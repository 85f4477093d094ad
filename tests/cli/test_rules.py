"""Business rules of `publish`: what is printed of them, and that a run sees when their files change."""

import json
from pathlib import Path

import pytest

from hotplate.offline.input.sample import sample
from tests.support.command import failed, hotplate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline that has rules, and the data of its run."""
    folder = tmp_path_factory.mktemp("rules")
    rows = sample(users=40, items=20)
    rows.write_csv(folder / "clicks.csv")
    items = rows.get_column("item").unique().sort().to_list()
    (folder / "catalogue.csv").write_text("item,category\n" + "".join(f"{item},x\n" for item in [*items[:12], "gone"]))
    (folder / "recalled.txt").write_text(f"{items[0]}\n")
    (folder / "nightly.toml").write_text(
        '[train]\ndata = "clicks.csv"\nfactors = 4\niterations = 1\nsplit = "none"\n'
        f'[publish]\nstore = "file://{folder}/store"\navailable = "catalogue.csv"\nexclude = "recalled.txt"\n'
        'categories = "catalogue.csv"\nmax_per_category = 3\n[run]\nwork = "work"\n'
    )
    return folder


def test_what_rules_name_in_vain_is_counted_and_a_changed_catalogue_makes_a_new_run(folder: Path) -> None:
    done = hotplate("run", folder / "nightly.toml")
    assert done.returncode == 0, done.stderr
    assert "  available: 13 items, 1 unknown\n  excluded: 1 items, 0 unknown\n  categories: 3 max, " in done.stderr
    with (folder / "catalogue.csv").open("a") as catalogue:
        catalogue.write("new,y\n")
    again = json.loads(hotplate("run", folder / "nightly.toml").stdout)
    assert (again["outcome"], again["release"]) != ("unchanged", json.loads(done.stdout)["release"])
    found = json.loads(hotplate("lookup", "nobody", "--store", f"file://{folder}/store", "--json").stdout)
    assert len(found["items"]) == 3, "all that may be recommended are of one category"


def test_a_cap_without_categories_is_misuse(folder: Path) -> None:
    failed(hotplate("publish", folder, "--max-per-category", "3"), "A cap needs both", code=2)
