from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from das_gym.adapt import refining
from das_gym.adapt.refining import REFINED, candidates, halve, lengths, refine, selected_mask
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits

MASKS = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]], dtype=bool)
CONFIG = TrainingConfig(steps=4, batch_size=4)


def test_lengths_double_up_to_half_of_all_steps():
    assert lengths(8, 400) == [50, 100, 200]
    assert lengths(5, 400) == [50, 100, 200]
    assert lengths(2, 400) == [200]
    assert lengths(16, 3) == [1, 1, 1, 2]


def test_halve_drops_masks_that_diverged_and_repeats_nothing(tmp_path: Path):
    tried: list[list[int]] = []

    def train(mask: np.ndarray, steps: int, *_: object) -> float:
        tried.append(np.flatnonzero(mask).tolist())
        if mask[0]:
            raise FloatingPointError("The training diverged.")
        return float("inf") if mask[4] else 0.5

    rounds = halve(list(MASKS), 4, tmp_path, train)
    assert rounds[0].losses == (None, 0.5, None)
    np.testing.assert_array_equal(selected_mask(rounds, MASKS), MASKS[1])
    count = len(tried)
    assert halve(list(MASKS), 4, tmp_path, train) == rounds
    assert len(tried) == count


@pytest.mark.slow
def test_refine_resumes_to_the_same_losses(tmp_path: Path, small_kwargs: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """It is interrupted in the last training, and where a result is written and its checkpoint not yet removed."""
    problem = ProblemConfig(**small_kwargs)
    splits = load_splits(problem)
    uninterrupted = refine(problem, splits, MASKS, CONFIG, tmp_path)
    assert [(each.steps, len(each.masks), len(each.losses)) for each in uninterrupted] == [(1, 3, 3), (2, 2, 2)]
    assert uninterrupted[1].masks == uninterrupted[0].best(2)
    assert len({loss for each in uninterrupted for loss in each.losses}) == 5

    (tmp_path / REFINED).unlink()
    trained, written, finetune, write_json = [], [], refining.finetune, refining.write_json

    def interrupted_finetune(subnet, splits, config, *args, **kwargs):
        trained.append(config)
        if len(trained) == 5:
            raise KeyboardInterrupt
        finetune(subnet, splits, dataclasses.replace(config, save_every=1), *args, **kwargs)

    def interrupted_write(*args):
        write_json(*args)
        written.append(args)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(refining, "finetune", interrupted_finetune)
    monkeypatch.setattr(refining, "write_json", interrupted_write)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            refine(problem, splits, MASKS, CONFIG, tmp_path)
        assert len(trained) == 5 or list(tmp_path.glob("*.pt"))
    assert refine(problem, splits, MASKS, CONFIG, tmp_path) == uninterrupted
    assert len(trained) == 1 + sum(len(each.losses) for each in uninterrupted)
    assert not list(tmp_path.glob("*.pt"))


def test_candidates_reads_no_more_masks_than_it_returns(capsys: pytest.CaptureFixture[str]):
    seen: list[int] = []

    def others():
        for number in range(1, 3):
            seen.append(number)
            yield MASKS[number]

    assert len(candidates(MASKS[0], others(), 1)) == 1
    assert not seen
    np.testing.assert_array_equal(candidates(MASKS[0], others(), 2), MASKS[:2])
    assert seen == [1]
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(candidates(MASKS[0], others(), 5), MASKS)
    assert "3 masks" in capsys.readouterr().out
