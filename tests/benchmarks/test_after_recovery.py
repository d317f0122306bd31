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


def test_regret_of_finalists_is_that_of_the_best_after_the_fewest_steps():
    quick, long = ([5.0, 4.0, 9.0, 9.0, 3.0, 1.0], [1.0, 0.7, 0.6, 2.0, 0.9, 0.5])
    rows = [
        {"recovered": {"lora, 20 steps": {"loss": a}, "lora, 300 steps": {"loss": b}}}
        for a, b in zip(quick, long, strict=True)
    ]
    lines = after_recovery.table({"rows": rows, "predictors": dict.fromkeys(after_recovery.PREDICTORS, range(6))})
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ")[-1] for line in lines.splitlines()}
    assert cells["| lora, 300 steps", "linear"] == "0.5000 |"
    # the sixth mask is not among the five that the predictor prefers
    assert cells["| lora, 300 steps", "linear, 5 finalists: lora, 20 steps"] == "0.4000 |"
