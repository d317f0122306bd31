import pytest

from benchmarks import masks
from benchmarks.harness import load_subject
from das_gym.engine import tree


@pytest.mark.slow
def test_turn_in_two_precisions(monkeypatch):
    monkeypatch.setattr(tree, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    subject = load_subject("mini", 3)
    turns = masks.mask_sets(12)[masks.TURN]
    records = masks.measure(subject, masks.TURN, turns, ["float32", "bfloat16"], 2)
    assert [record["precision"] for record in records] == ["float32", "bfloat16"]
    for record in records:
        assert record["layer_runs"] < record["layer_runs_plain"] == 3 * 8
        assert record["ratio_full"] > record["ratio_masked"] > 0
    assert records[0]["largest_difference"] < 1e-5
    assert masks.describe("mini", records[0]).startswith("METER-mini, float32, a turn of 3:")
