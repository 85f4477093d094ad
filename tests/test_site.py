"""The site's index for language models, made by the hooks of the documentation's build."""

import importlib
import re

import pytest

from tests.support.paths import ROOT

PAGE = re.compile(r"^- \[[^\]]+\]\(([a-z]+)\.html\)(: .+)?$")


@pytest.fixture
def index() -> str:
    """The text of llms.txt."""
    pytest.importorskip("mkdocs", reason="make site installs mkdocs")
    config_module = importlib.import_module("mkdocs.config")
    files_module = importlib.import_module("mkdocs.structure.files")
    nav_module = importlib.import_module("mkdocs.structure.nav")
    config = config_module.load_config(str(ROOT / "mkdocs.yml"))
    files = config.plugins.on_files(files_module.get_files(config), config=config)
    config.plugins.on_nav(nav_module.get_navigation(files, config), config=config, files=files)
    text: str = files.get_file_from_path("llms.txt").content_string
    return text


def test_index_has_one_line_for_each_page(index: str) -> None:
    lines = [line for line in index.splitlines() if line.startswith("- ")]
    named = [page[1] for line in lines if (page := PAGE.match(line)) is not None]
    written = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"index", "changelog", "contributing"}
    assert len(lines) == len(named)
    assert sorted(named) == sorted(written)
    assert index.startswith("# hotplate\n\n> ")
