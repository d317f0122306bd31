"""Losses of given masks after several recoveries, on a tiny model."""

import pytest

from benchmarks import after_recovery


@pytest.mark.slow
def test_losses_of_given_masks_after_recovery(tiny_llava, tmp_path):
    settings = ["--checkpoint", tiny_llava["checkpoint"], "--data-root", tiny_llava["data_root"], "--layers", "1", "0"]
    settings += ["--steps", "2", "4", "--batch-size", "4", "--recover", "none", "last_layers", "linear"]
    first = after_recovery.main([*settings, "--out", str(tmp_path / "first.json")])
    ways = ["none", "last_layers, 2 steps", "last_layers, 4 steps", "linear"]
    assert [list(row["recovered"]) for row in first["rows"]] == [ways, ways]
    for row in first["rows"]:
        losses = [row["recovered"][way]["loss"] for way in ways]
        assert len(set(losses)) == len(ways)
    again = after_recovery.main([*settings, "--out", str(tmp_path / "first.json")])
    assert again == first, "the same command reads what it has measured"
