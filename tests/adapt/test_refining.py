"""Short trainings that choose among a search's best masks."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from das_gym.adapt import refining
from das_gym.adapt.adapt_experiment import AdaptSettings
from das_gym.adapt.finetune import FinetuneConfig
from das_gym.adapt.refining import CHECKPOINTS, REFINED, Round, candidates, halve, lengths, refine
from das_gym.agents.searching.record import Turn, best_rows

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits

MASKS = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]], dtype=bool)
CONFIG = FinetuneConfig(steps=4, batch_size=4)


def test_each_round_is_twice_as_long_and_the_last_has_half_of_all_steps():
    assert lengths(8, 400) == [50, 100, 200]
    assert lengths(5, 400) == [50, 100, 200]
    assert lengths(2, 400) == [200]
    assert lengths(16, 3) == [1, 1, 1, 2]


def test_the_best_of_a_round_keep_their_order_and_what_came_to_no_number_is_last():
    done = Round(5, ((0, 0), (0, 1), (1, 0), (1, 1)), (0.4, None, 0.1, 0.2))
    assert done.best(1) == ((1, 0),)
    assert done.best(2) == ((1, 0), (1, 1))
    assert done.best(3) == ((0, 0), (1, 0), (1, 1))


def test_a_mask_whose_training_comes_to_no_number_is_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tried: list[list[int]] = []

    def train(mask: np.ndarray, steps: int, *_: object) -> float:
        tried.append(np.flatnonzero(mask).tolist())
        if mask[0]:
            raise FloatingPointError("the loss is nan at step 1")
        return float("inf") if mask[4] else 0.5

    rounds = halve(list(MASKS), 4, tmp_path, train)
    assert rounds[0].losses == (None, 0.5, None)
    assert rounds[-1].best(1) == ((0, 1, 1, 0, 0, 0),)
    assert "refining, mask 1 of 3: the loss is nan at step 1; it counts as the worst" in capsys.readouterr().out
    count = len(tried)
    assert halve(list(MASKS), 4, tmp_path, train) == rounds
    assert len(tried) == count


def test_the_masks_that_a_search_may_answer_come_best_first_and_once():
    masks, rewards = [[1, 0], [0, 1], [1, 1], [1, 0]], [0.2, 0.9, 1.0, 0.3]
    scores = {name: [1.0] * 4 for name in ("loss", "metric", "macs_saved")}
    turns = [Turn(masks, rewards, macs=[1] * 4, skip_probabilities=None, preferences=None, **scores)]
    assert [(row["mask"], row["reward"]) for row in best_rows(turns, {"skip_num": 1})] == [([0, 1], 0.9), ([1, 0], 0.3)]


@pytest.mark.slow
def test_masks_are_halved_until_one_is_left_and_a_stop_changes_nothing(
    tmp_path: Path, small_kwargs: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    problem = ProblemConfig(**small_kwargs)
    splits = load_splits(problem)
    whole = refine(problem, splits, MASKS, CONFIG, tmp_path)
    assert [(each.steps, len(each.masks), len(each.losses)) for each in whole] == [(1, 3, 3), (2, 2, 2)]
    assert whole[1].masks == whole[0].best(2)
    assert len({loss for each in whole for loss in each.losses}) == 5

    (tmp_path / REFINED).unlink()
    trained, finetune = [], refining.finetune

    def stopped(*args, **kwargs):
        trained.append(args)
        if len(trained) == 5:
            raise KeyboardInterrupt
        finetune(*args, **kwargs)

    monkeypatch.setattr(refining, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        refine(problem, splits, MASKS, CONFIG, tmp_path)
    assert refine(problem, splits, MASKS, CONFIG, tmp_path) == whole
    assert len(trained) == 1 + sum(len(each.losses) for each in whole)
    assert not list(tmp_path.glob(CHECKPOINTS))


def test_of_other_masks_no_more_are_looked_at_than_are_tried(capsys: pytest.CaptureFixture[str]):
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
    assert capsys.readouterr().out == "the search saw 3 masks that keep the budget: all are tried\n"


def test_only_a_search_has_masks_to_choose_among():
    with pytest.raises(ValueError, match=r"refine=8 chooses among the masks of a search; leave out mask, front and point"):
        AdaptSettings(mask=(0, 1), refine=8)
    with pytest.raises(ValueError, match=r"refine=0 is not allowed; use 1 or more"):
        AdaptSettings(refine=0)


@pytest.mark.slow
def test_what_a_finished_mask_left_does_not_train_the_next(
    tmp_path: Path, small_kwargs: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """A stop between writing down what came of a mask and removing its checkpoint."""
    problem = ProblemConfig(**small_kwargs)
    splits = load_splits(problem)
    whole = refine(problem, splits, MASKS[:2], CONFIG, tmp_path)
    (tmp_path / REFINED).unlink()
    write_json, written = refining.write_json, []

    def stopped(*args):
        write_json(*args)
        written.append(args)
        if len(written) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(refining, "write_json", stopped)
    monkeypatch.setattr(refining, "finetune", partial(saving, finetune=refining.finetune))
    with pytest.raises(KeyboardInterrupt):
        refine(problem, splits, MASKS[:2], CONFIG, tmp_path)
    assert list(tmp_path.glob("*.pt"))
    assert refine(problem, splits, MASKS[:2], CONFIG, tmp_path) == whole
    assert not list(tmp_path.glob("*.pt"))


def saving(subnet, splits, config, *args, finetune, **kwargs):
    """Fine-tune with a checkpoint after every step."""
    finetune(subnet, splits, dataclasses.replace(config, save_every=1), *args, **kwargs)


def test_a_damaged_record_is_named(tmp_path: Path, small_kwargs: dict[str, str]):
    (tmp_path / REFINED).write_text('{"round": []}')
    with pytest.raises(ValueError, match=r"refined\.json is damaged \('rounds'\): remove it, and all is refined anew"):
        refine(ProblemConfig(**small_kwargs), None, MASKS, CONFIG, tmp_path)
