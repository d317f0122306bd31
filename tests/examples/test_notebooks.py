"""The notebooks of examples/ run from top to bottom, with smaller settings."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "front": {"EVALUATIONS = 120": "EVALUATIONS = 12"},
    "shrink": {"EVALUATIONS, EXAMPLES, OUT = 40, 128": "EVALUATIONS, EXAMPLES, OUT = 3, 8"},
}
PRINTS = {"front": "12 layers; full model: loss", "shrink": "decoder layers"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear its outputs: no test compares them"
    for cell in notebook.cells:
        for old, new in SMALL.get(path.stem, {}).items():
            cell.source = cell.source.replace(old, new)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert PRINTS.get(path.stem, "") in printed
    assert any("image/png" in output.get("data", {}) for output in outputs)
