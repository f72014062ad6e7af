"""The notebook runs, shows its images and curves, and is stored without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.paths import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks" / "demo.ipynb"
SMALL = (
    'OPTIONS += ["--data.batch_size=2", "--metrics.num_images=8", "--metrics.teacher_steps=1", '
    '"--image_grid.every_n_steps=1", "--image_grid.num_images=2", "--trainer.log_every_n_steps=1"]'
)


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (first,) = [cell for cell in notebook.cells if cell.source.startswith("ITERATIONS = 240")]
    first.source = first.source.replace("240", "2")
    (fit,) = [cell for cell in notebook.cells if "OPTIONS = [" in cell.source]
    fit.source = fit.source.replace("\ncommand", f"\n{SMALL}\ncommand")
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=folder).execute()
    shown = [
        output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    images = [data for data in shown if "image/png" in data]
    assert len(images) == 3 + 1 + 1 + 2  # grids of iterations 0 to 2, comparison, curves, samples
    printed = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))
    assert "SiD-LSG, 1 step" in printed
