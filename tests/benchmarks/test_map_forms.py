"""What replaces removed layers, on a tiny text model."""

import pytest

from benchmarks import map_forms
from tests.models.transformers import tiny


def test_runs_of_consecutive_layers():
    assert map_forms.consecutive([1, 2, 5, 7, 8, 9]) == [range(1, 3), range(5, 6), range(7, 10)]


@pytest.mark.slow
def test_every_form_is_measured(tmp_path):
    checkpoint = tiny.save("llama", tmp_path / "model")
    words = ["--checkpoint", str(checkpoint), "--data-root", str(tiny.text_folder(tmp_path)), "--context", "16"]
    rows = map_forms.main([*words, "--layers", "1,2", "--steps", "3"])
    perplexity = {name: float(row[1]) for name, *row in rows}
    assert perplexity["linear"] != perplexity["linear, one for a run"] != perplexity["removed"]
