"""Clients of libraries use public names only, and such as are there in what is installed."""

import ast
import importlib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MODULES = sorted(
    [*(ROOT / "stores/cosmos").glob("*.py"), *(ROOT / "stores/redis").glob("*.py"), ROOT / "stores/http1.py"]
)


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_private_name_of_another_object_or_module_is_used(module: Path) -> None:
    tree = ast.parse(module.read_text())
    private = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr != "_replace"
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            private += filter(is_private, names)
            if node.module.split(".")[0] in ("redis", "hiredis", "azure"):
                library = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(library, alias.name)], node.module
    assert private == []
