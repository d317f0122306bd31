from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import retrieval
from das_gym.models.checkpoints import load_vlp
from das_gym.models.encoding import meta_batch
from das_gym.problem.costs import count_costs
from das_gym.shapes.captions import write_shapes_captions


@pytest.mark.long
def test_a_few_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrieval, "BATCH_SIZES", (16,))
    folder = write_shapes_captions(tmp_path / "data", scenes={"train": 4, "val": 4, "test": 6})
    path = tmp_path / "retrieval.json"
    retrieval.main(["--images", "3", "--plain", "16", "--repeats", "1", "--data-root", str(folder), "--json", str(path)])
    written = json.loads(path.read_text())
    assert {"processor", "versions"} <= written["machine"].keys()
    assert [record["mask"] for record in written["records"]] == list(retrieval.MASKS)
    for record in written["records"]:
        assert (record["images"], record["texts"], record["plain_pairs_timed"]) == (3, 15, 15)
        assert record["plain"].keys() == set(retrieval.KINDS)
        for plain in record["plain"].values():
            assert plain["largest_difference"] < 1e-5
            assert plain["ratio_macs"] > 1
            assert plain["ratio"] == plain["seconds_per_pair"] / record["engine"]["seconds_per_pair"]
    assert "times as long" in capsys.readouterr().out


@pytest.mark.slow
def test_macs_of_a_pair_are_those_of_the_layers_alone(mini_folder: Path):
    vlp = load_vlp(mini_folder)
    batch = meta_batch(16, (3, vlp.config.image_size, vlp.config.image_size))
    costs, nothing = count_costs(vlp, batch, counting="paper"), np.zeros(12, dtype=bool)
    kept = int((costs.layer_macs + costs.parallel_macs).sum())
    assert 0.7 * kept < retrieval.pair_macs(vlp, nothing, 16) < 5 / 6 * kept
    every = retrieval.pair_macs(vlp, ~nothing, 16)
    assert every == 2 * 64**2  # the poolers: streams never meet
