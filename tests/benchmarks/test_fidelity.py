from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity import drawn_masks, interval, known, main, predictors, ranks, report, spearman
from das_gym.registration import ENVIRONMENTS
from das_gym.tables.table import SubnetTable


@pytest.fixture(scope="module")
def table() -> SubnetTable:
    return SubnetTable.load(ENVIRONMENTS["DAS-METER-VQA-v0"].table)


def test_equal_values_share_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 25.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_masks_are_half_of_the_best_tenth(table: SubnetTable):
    masks, top = drawn_masks(table, 4, 11)
    assert masks.shape == (11, 12)
    assert (masks.sum(axis=1) == 4).all()
    assert len(np.unique(masks, axis=0)) == 11
    placed = table.rank(masks, "exp_neg_loss", skip_num=4)
    assert top.tolist() == [True] * 5 + [False] * 6
    assert (placed[top] <= 49).all()
    assert (placed[~top] > 49).all()


def test_what_knows_the_results_predicts_them_and_noise_does_not(table: SubnetTable):
    masks, top = drawn_masks(table, 4, 30)
    reward = predictors(table, masks)["reward"]
    text = report(table, masks, top, np.stack((reward, reward[::-1]), axis=1)[:, :1])
    (line,) = [line for line in text.splitlines() if line.startswith("| reward |")]
    assert line == "| reward | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 0.0 |"
    assert "30 masks, 1 seeds" in text
    assert "between seeds" not in text
    low, high = interval(reward, np.random.default_rng(3).permutation(reward))
    assert low < 0 < high
    assert "| 15 steps of fine-tuning | 1.00 [1.00, 1.00] |" in report(table, masks, top, reward[:, None], {15: 2 * reward})
    assert "| between seeds | " in report(table, masks, top, np.stack((reward, reward[::-1]), axis=1))


def test_how_far_results_and_seeds_lie_apart(table: SubnetTable):
    masks, top = drawn_masks(table, 4, 4)
    metrics = np.array([[0.9, 0.94], [0.95, 0.95], [0.2, 0.2], [0.5, 0.5]])
    words = "between 20.0 and 95.0 %, in the best tenth from 92.0 % on"
    assert words in report(table, masks, top, metrics.mean(axis=1, keepdims=True)).splitlines()
    both = f"{words}, where seeds of one mask scatter by 2.00 points (standard deviation)"
    assert both in report(table, masks, top, metrics).splitlines()


@pytest.mark.slow
def test_the_command_keeps_every_training_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--masks", "4", "--steps", "1", "--test-examples", "16", "--out", str(tmp_path / "fidelity.json")]
    main([*words, "--start", "new"])
    first = json.loads((tmp_path / "fidelity.json").read_text())["trained"]
    assert len(first) == 4
    main([*words, "--short", "1"])
    both = json.loads((tmp_path / "fidelity.json").read_text())["trained"]
    assert len(both) == 12
    assert sum(name.startswith("short 1 1000 ") for name in both) == 4
    assert both.items() >= first.items()
    printed = capsys.readouterr().out
    assert "adapters: supernet" in printed
    assert "| sum of leave_one_out |" in printed
    assert "| 1 steps of fine-tuning |" in printed


def test_a_file_of_other_settings_is_not_gone_on_from(tmp_path: Path):
    path = tmp_path / "fidelity.json"
    settings = {"env": "meter_vqa", "steps": 300, "skip_num": 4, "test_examples": None}
    assert known(path, settings) == {}
    path.write_text(json.dumps({"settings": settings, "trained": {"new 0 1010": 0.5}}))
    assert known(path, settings) == {"new 0 1010": 0.5}
    with pytest.raises(ValueError, match=r"fidelity\.json was made with .*'steps': 300.* give another file"):
        known(path, {**settings, "steps": 100})
