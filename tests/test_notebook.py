"""The notebook runs from top to bottom on a run of toy cells, shows what it promises, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOK = Path(__file__).resolve().parents[1] / "data_validation" / "data_validation_garage.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook):
    """Run it where Jupyter runs it: in the notebook's own folder."""
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.slow
def test_runs_on_a_toy_run(notebook, toy_runs, monkeypatch):
    monkeypatch.setenv("GARAGE_RUN", str(toy_runs / "seed0"))
    cells = execute(notebook)
    data = [output.data for cell in cells for output in cell.outputs if "data" in output]
    assert sum("image/png" in shown for shown in data) == 1
    table = data[-1]["text/plain"]
    for row in ("garage", "real_half", "poisson", "all_zeros", "held-out cells"):
        assert row in table


@pytest.mark.slow
def test_without_a_run_it_names_the_command(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("GARAGE_RUN", str(tmp_path / "nothing"))
    with pytest.raises(CellExecutionError) as error:
        execute(notebook)
    assert "make it with python data_generation/garage.py --holdout 0.5" in str(error.value)
