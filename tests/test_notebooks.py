"""Every notebook runs from top to bottom, and has outputs of the same kinds in it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager

from run_notebooks import run

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FASTER = {
    "02_finetune_on_lab_spectra": """
import lightning
class Short(lightning.Trainer):
    def __init__(self, **settings):
        super().__init__(**{**settings, "max_epochs": 3})
lightning.Trainer = Short
""",
    "03_add_a_baseline": """
from defectnet.benchmark.baselines.composition import Candidates, HostComposition
HostComposition.options = Candidates.options[:1]
""",
    "04_known_crystal": """
from defectnet.inference import known_crystal, plan
known_crystal.CELLS, known_crystal.NEAR_CELLS, known_crystal.ROUNDS = (8, 20), 8, 1
plan.FINE_DRAWS, plan.NULL_DRAWS, plan.PAIR_DRAWS, plan.INTERVAL_DRAWS = 40, 100, 20, 10
""",
}
"""What is run before a notebook so that a test of it is short."""


def kinds(notebook):
    """Return the kinds of output of each cell; lines of text that are printed one by one may come together."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted({output.get("name", "") or str(sorted(output.get("data", {}))) for output in one}) for one in cells]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 3


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks: what they import takes longer than what they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=ROOT / "notebooks")
        yield manager
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path, kernel):
    stored, fresh = nbformat.read(path, as_version=4), run(path, FASTER.get(path.stem, ""), kernel)
    outputs = [output for cell in fresh.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert kinds(stored) == kinds(fresh), "run: make docs"
    assert stored.metadata == fresh.metadata
