"""The notebooks of the docs: the first is executed as it stands, the other, for Databricks, has to be Python."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from tests.support.paths import ROOT
from tests.support.processes import run_process

EXECUTE = """
import sys
import nbclient, nbformat

# Enough on a busy machine for the first read of a store.
PATIENT = "import functools, hotplate; hotplate.open_sync = functools.partial(hotplate.open_sync, timeout_s=60)"

notebook = nbformat.read(sys.argv[1], as_version=4)
notebook.cells.insert(0, nbformat.v4.new_code_cell(PATIENT))
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.mark.soak
def test_the_quickstart_notebook_runs_on_made_up_data_and_draws_its_plots(tmp_path: Path) -> None:
    executed = tmp_path / "made.ipynb"
    environment = os.environ | {"TMPDIR": str(tmp_path), "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", EXECUTE, str(ROOT / "docs/quickstart.ipynb"), str(executed)]
    run_process(*command, env=environment, timeout=200)
    outputs = [output for cell in json.loads(executed.read_text())["cells"] for output in cell.get("outputs", [])]
    assert not list(tmp_path.glob("hotplate-*")), "the notebook removes its folder"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert ("personal" in printed, "nobody: popular" in printed, "live again" in printed) == (True, True, True)


NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.mark.soak  # to import nbformat takes 5 s of a core
def test_each_notebook_is_valid() -> None:
    program = "import nbformat, sys; [nbformat.validate(nbformat.read(path, as_version=4)) for path in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", program, *NOTEBOOKS], check=True, timeout=120)


def test_the_code_of_each_notebook_is_python_and_none_has_outputs() -> None:
    for path in NOTEBOOKS:
        for cell in (
            candidate for candidate in json.loads(path.read_text())["cells"] if candidate["cell_type"] == "code"
        ):
            ast.parse(TransformerManager().transform_cell("".join(cell["source"])))
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
