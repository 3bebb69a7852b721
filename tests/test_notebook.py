"""The notebook for newcomers: its code is ours as it is now, it holds no outputs, and it runs from top to bottom."""

import ast
import importlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

import vidmodels.cli
import vidprep.cli

ROOT = Path(__file__).parent.parent
PATH = ROOT / "notebooks" / "first_steps.ipynb"
CELLS = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
APPS = {"vidprep": vidprep.cli.app, "vidmodels": vidmodels.cli.app}


def commands() -> Iterator[list[str]]:
    """The words of what the cells run; what a cell fills in is one word."""
    for call in (node for code in CODE for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == "run":
            parts = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
            yield shlex.split("".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts))


def test_it_is_committed_without_outputs() -> None:
    assert [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")] == []


def test_what_its_cells_import_is_there() -> None:
    for node in (node for code in CODE for node in ast.walk(ast.parse(code))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vidmodels":
            assert hasattr(vidmodels, node.attr)


def test_its_commands_are_ones_that_the_programs_take() -> None:
    found = list(commands())
    assert len(found) >= 4
    for program, name, *words in found:
        group = get_command(APPS[program])
        options = {option for parameter in getattr(group, "commands")[name].params for option in parameter.opts}  # noqa: B009
        assert [word for word in words if word.startswith("--") and word not in options] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own parts
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    notebook = nbformat.read(PATH, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**os.environ, **environment})
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert "560 clips of 8 classes" in printed
    assert "dynamic" in printed
    assert (tmp_path / "first_steps" / "run" / "best.safetensors").exists()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
