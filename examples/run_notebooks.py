"""Run the notebooks and keep their outputs in them, for the documentation: python examples/run_notebooks.py [names]."""

from __future__ import annotations

import argparse
import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from PIL import Image

from defectnet.files import replacing

COLOURS = 64
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run(path: Path, before: str = "", kernel: KernelManager | None = None) -> nbformat.NotebookNode:
    """Return a notebook with the outputs that it has now.

    Args:
        path: The notebook.
        before: Code that is run first and leaves no trace.
        kernel: A running one, in which others were run before; by default one of its own.
    """
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    if kernel is not None:
        before = f"%reset -f\n{before}"  # no name of another notebook is left
    if before:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    if kernel is None:
        where = {"metadata": {"path": path.parent}}
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)
        client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    else:
        NotebookClient(notebook, timeout=600, km=kernel).execute()
    if before:
        del notebook.cells[0]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it was run
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])
    notebook.metadata = metadata
    return notebook


def _small(picture: str) -> str:
    """Return a picture in base64 with few colours, which halves it."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        out = io.BytesIO()
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode("ascii")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 04_known_crystal")
    chosen = parser.parse_args(arguments)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not chosen.names or path.stem in chosen.names:
            notebook = run(path)
            with replacing(path) as temporary:
                nbformat.write(notebook, temporary)


if __name__ == "__main__":
    main()
