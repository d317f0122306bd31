import json

import numpy as np
import pytest

from benchmarks.fidelity import choose_masks, main, predictors, report
from das_gym.registration import ENVIRONMENTS
from das_gym.tables.table import SubnetTable


@pytest.fixture(scope="module")
def table() -> SubnetTable:
    return SubnetTable.load(ENVIRONMENTS["DAS-METER-VQA-v0"].table)


def test_masks_are_half_of_the_best_tenth(table):
    masks, top = choose_masks(table, 11)
    assert masks.shape == (11, 12)
    assert (masks.sum(axis=1) == 4).all()
    assert len(np.unique(masks, axis=0)) == 11
    placed = table.rank(masks, "exp_neg_loss", skip_num=4)
    assert top.tolist() == [True] * 5 + [False] * 6
    assert (placed[top] <= 49).all()
    assert (placed[~top] > 49).all()


def test_report_separates_true_scores_from_noise(table):
    masks, top = choose_masks(table, 30)
    reward = predictors(table, masks)["reward"]
    text = report(table, masks, top, reward[:, None], {15: 2 * reward})
    assert "| reward | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 0.0 |" in text.splitlines()
    assert "| 15 steps of fine-tuning | 1.00 [1.00, 1.00] |" in text
    assert "another seed" not in text
    both = report(table, masks, top, np.stack((reward, reward[::-1]), axis=1), {})
    assert "| another seed | " in both
    assert "standard deviation between seeds" in both.splitlines()[0]


@pytest.mark.slow
def test_command_saves_every_training_and_resumes(tmp_path, capsys):
    words = ["--masks", "2", "--steps", "1", "--test-examples", "8", "--out", str(tmp_path / "fidelity.json")]
    main([*words, "--start", "new"])
    first = json.loads((tmp_path / "fidelity.json").read_text())["trained"]
    assert len(first) == 2
    main([*words, "--short", "1"])
    both = json.loads((tmp_path / "fidelity.json").read_text())["trained"]
    assert len(both) == 6
    assert sum(name.startswith("short 1 1000 ") for name in both) == 2
    assert both.items() >= first.items()
    printed = capsys.readouterr().out
    assert "adapters: supernet" in printed
    assert "| sum of leave_one_out |" in printed
    assert "| 1 steps of fine-tuning |" in printed
