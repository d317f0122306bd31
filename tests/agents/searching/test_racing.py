"""Racing: which masks are dropped, what the agent is told, and what the record says."""

import io
import json
import re
import sys

import numpy as np
import pytest
from das_gym.agents import Budget, MaskSpace, SearchConfig, SearchResult, search
from das_gym.agents.run_commands import search as run_search
from das_gym.agents.searching.racing import Race
from das_gym.agents.searching.scorer import SCORES
from synthetic import ENV_ID, StopError, check_replays, stop_after

from benchmarks.search.racing import LossTable
from das_gym.envs.engine_scoring import EngineScorer
from das_gym.problem.mask_space import every_mask
from tests.made_up_tables import made_up_table

N_EXAMPLES = 64
SPACE = MaskSpace(Budget(4, skip_num=1))
MASKS = np.eye(4, dtype=bool)


def make_race(rows, **settings) -> Race:
    """Return a race of masks with these losses, (m, N_EXAMPLES), with stages of 16 and 32 examples."""
    losses = np.array(rows, dtype=float)
    return Race(LossTable(MASKS[: len(losses)], losses), SPACE, **{"stages": (1 / 4, 1 / 2), "least": 16, **settings})


def test_race_drops_a_mask_that_is_clearly_worse_and_tells_its_mean_difference():
    rng = np.random.default_rng(0)
    base = rng.random(N_EXAMPLES)
    worse = base + rng.normal(0.5, 0.1, N_EXAMPLES)
    race = make_race([base, worse])
    assert race.score(MASKS[:1]).shares.tolist() == [1.0]  # there is nothing to compare it with
    raced = race.score(MASKS[1:2])
    assert raced.shares.tolist() == [0.25]
    told = base.mean() + (worse - base)[:16].mean()
    np.testing.assert_allclose(raced.scores["loss"], [told])
    np.testing.assert_allclose(raced.rewards, [np.exp(-told)])


@pytest.mark.parametrize(("shift", "share"), [(0.24, 1.0), (0.26, 0.25)])
def test_race_gives_the_benefit_of_the_doubt_by_the_standard_error(shift, share):
    """Differences of shift + 0.4 and shift - 0.4 in turns: s = 0.4 * sqrt(16 / 15) / 4 * sqrt(3 / 4) after 16 examples."""
    base = np.ones(N_EXAMPLES)
    other = base + shift + 0.4 * (-1.0) ** np.arange(N_EXAMPLES)
    race = make_race([base, other], z=0.25 / 0.0894427, stages=(1 / 4,))
    race.score(MASKS[:1])
    assert race.score(MASKS[1:2]).shares.tolist() == [share]


def test_race_promotes_better_masks_and_drops_broken_ones():
    base = np.linspace(1.0, 2.0, N_EXAMPLES)
    broken = np.where(np.arange(N_EXAMPLES) == 3, np.nan, base)
    race = make_race([base, base - 0.5, broken, base - 0.25])
    race.score(MASKS[:1])
    assert race.score(MASKS[1:3]).shares.tolist() == [1.0, 0.25]
    assert race.score(MASKS[2:3]).rewards.tolist() == [0.0]
    assert race.score(MASKS[3:]).shares.tolist() == [0.25]  # better than the first, worse than the second
    again = make_race([base, base - 0.5, broken, base - 0.25])
    again.load_state_dict(json.loads(json.dumps(race.state_dict())))
    assert again.score(MASKS[3:]).scores["loss"].tolist() == race.score(MASKS[3:]).scores["loss"].tolist()


def test_race_estimates_no_loss_below_the_losses_of_examples():
    """The incumbent has small losses on the first half, and the other mask smaller ones on the first quarter."""
    asked = []

    class Recording(LossTable):
        def rewards_and_info(self, masks, losses, metrics):
            asked.append(losses.min())
            return super().rewards_and_info(masks, losses, metrics)

    base = np.where(np.arange(N_EXAMPLES) < 32, 0.2, 0.0)
    other = np.where(np.arange(N_EXAMPLES) < 16, 0.0, 1.0)
    race = Race(Recording(MASKS[:2], np.array([base, other])), SPACE, (1 / 4, 1 / 2), least=16)
    race.score(MASKS[:2])
    assert race.score(MASKS[1:2]).shares.tolist() == [0.5]
    assert min(asked) >= 0


def test_race_compares_masks_off_the_budget_with_those_of_as_many_units():
    base = np.linspace(1.0, 2.0, N_EXAMPLES)
    masks = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0]], dtype=bool)
    race = Race(LossTable(masks, np.array([base, base + 1, base + 2, base + 3])), SPACE, (1 / 4,), least=16)
    assert [race.score(mask[None]).shares[0] for mask in masks] == [1.0, 1.0, 1.0, 0.25]


def test_race_of_a_model_agrees_with_its_environment(small_problem):
    scorer = EngineScorer(small_problem, {"skip_num": 2}, reward_examples=12)
    masks = every_mask(6, 2)
    raced = Race(scorer, MaskSpace(Budget(6, 2)), (1 / 2,), least=6).score(masks)
    rewards, scores = scorer.score(masks)
    np.testing.assert_allclose(raced.rewards, rewards, atol=1e-6)
    for name in SCORES:
        np.testing.assert_allclose(raced.scores[name], scores[name], atol=1e-5)


def test_search_records_the_share_of_each_mask_and_resumes_exactly(tmp_path):
    made_up_table(8, 3, examples=240).save(tmp_path / "table.npz")
    env_kwargs = {"table": str(tmp_path / "table.npz"), "reward_examples": 240}
    raced = SearchConfig("DAS-METER-VQA-Tabular-v0", skip_num=3, env_kwargs=env_kwargs, evaluations=12, seed=1)
    result = search(raced, folder=tmp_path / "whole")
    shares = [share for turn in result.history for share in turn.shares]
    assert {0.25, 1.0} <= set(shares) <= {0.25, 0.5, 1.0}  # an eighth would have 30 examples
    assert 12 >= sum(shares) > 11
    assert len(shares) > 12
    complete = [row for turn in result.history for row in turn.complete_rows]
    assert result.mask.tolist() in [row["mask"] for row in complete]
    assert result.reward == pytest.approx(max(row["reward"] for row in complete), abs=1e-5)
    check_replays(SearchResult.load(tmp_path / "whole"))
    with pytest.raises(StopError):
        search(raced, folder=tmp_path / "stopped", callback=stop_after(3))
    search(raced, folder=tmp_path / "stopped")
    for name in ("search.json", "search_history.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_progress_counts_whole_evaluations(tmp_path, monkeypatch):
    made_up_table(8, 3, examples=240).save(tmp_path / "table.npz")
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())  # no terminal: lines
    monkeypatch.setattr("das_gym.commands.progress.LINE_SECONDS", 1e-9)
    env_kwargs = {"table": str(tmp_path / "table.npz"), "reward_examples": 240}
    settings = {"env_id": "DAS-METER-VQA-Tabular-v0", "skip_num": 3, "env_kwargs": env_kwargs, "evaluations": 12}
    run_search.run({**settings, "runs_dir": str(tmp_path / "runs")})
    counts = re.findall(r"searching: (.*)/12 masks", sys.__stderr__.getvalue())
    assert len(counts) > 3
    assert all(count.isdecimal() for count in counts)


@pytest.mark.parametrize(
    "settings",
    [
        {"env_id": ENV_ID},
        {"env_id": "DAS-METER-VQA-Tabular-v0"},
        {"reward_batches": "cycle"},
        {"reward": "metric"},
    ],
)
def test_search_names_racing_where_it_is_impossible(small_kwargs, settings):
    env_id = settings.pop("env_id", None)
    env_kwargs = {} if env_id else {**small_kwargs, **settings}
    config = SearchConfig(env_id or "DAS-METER-VQA-v0", skip_num=2, racing=True, env_kwargs=env_kwargs, evaluations=2)
    with pytest.raises(ValueError, match="`racing`"):
        search(config)
