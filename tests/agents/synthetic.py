"""A small search problem: 12 layers, with additive and pairwise losses."""

from contextlib import closing

import gymnasium
import numpy as np
import pytest
from das_gym.agents.searching.scorer import SCORES, open_scorer

from das_gym.drawing.architecture import Architecture
from das_gym.engine.scores import Scores
from das_gym.envs.episodes import ScoredEnv
from das_gym.envs.scoring import Scorer
from das_gym.problem.budget import MaskCost, pick_budget
from das_gym.problem.rewards import Objective, find_reward

N_LAYERS = 12
ENV_ID = "synthetic:Synthetic-v0"
MACS = MaskCost(1000, 1000, np.full(N_LAYERS, 50))


class StopError(Exception):
    """Stands for a kill between two turns."""


def stop_after(turns):
    """Return an `on_turn` that stops a search in one of its turns."""
    seen = []

    def on_turn(turn):
        seen.append(turn)
        if len(seen) == turns:
            raise StopError

    return on_turn


def check_replays(result):
    """Check that a record is complete: its environment scores the answer as it says."""
    with closing(open_scorer(result.env_id, result.env_kwargs, result.seed)) as scorer:
        rewards, scores = scorer.score(np.array([result.mask], dtype=bool))
    found = {"reward": rewards, **{name: scores[name] for name in SCORES}}
    recorded = {name: getattr(result, name) for name in found}
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(recorded, rel=1e-4, abs=1e-4)


def true_losses(masks):
    """Return the (m,) losses of (m, 12) masks without noise."""
    rng = np.random.default_rng(5)
    single = rng.uniform(0.0, 0.4, N_LAYERS)
    pairs = np.triu(rng.uniform(-0.05, 0.1, (N_LAYERS, N_LAYERS)), 1)
    return 0.3 + np.array([(row * single).sum() + row @ pairs @ row for row in np.asarray(masks, dtype=float)])


class SyntheticScorer(Scorer):
    """reward = exp(-loss); `resample` adds noise, `cycle` a drift with the number of steps."""

    scores_examples = False
    metric_name = "accuracy"
    fingerprint = ""

    def __init__(self, budget, reward_batches="fixed", broken_from=None, no_loss=False):
        names = tuple(f"{stream}.{i}" for stream in ("text", "image") for i in range(6))
        objective = Objective(pick_budget(N_LAYERS, budget, self.cost_of), find_reward("exp_neg_loss"), MACS)
        super().__init__(names, objective, "block_influence_tokens")
        self.reward_batches, self.broken_from, self.no_loss = reward_batches, broken_from, no_loss

    def cost_of(self, setting):
        return MACS

    def data_hash(self):
        return ""

    def statistic(self, name):
        return np.zeros(N_LAYERS, np.float32)

    def architecture(self):
        return Architecture.from_names(self.layer_names, macs=MACS)

    def measure(self, masks, rng):
        self.position += 1
        if self.broken_from is not None and self.position >= self.broken_from:
            raise FileNotFoundError("images/0007.png is missing; put it back and resume")
        losses = true_losses(masks)
        if self.reward_batches == "resample":
            losses = losses + rng.normal(0.0, 0.05)
        elif self.reward_batches == "cycle":
            losses = losses + 0.01 * (self.position % 7)
        if self.no_loss:
            losses = np.full(len(masks), np.inf)
        return Scores(losses, np.exp(-losses) / 2)

    def measure_fixed(self, masks):
        return Scores(true_losses(masks), np.zeros(len(masks)))


class SyntheticEnv(ScoredEnv):
    def __init__(self, skip_num=None, macs_saved=None, **settings):
        super().__init__(SyntheticScorer({"skip_num": skip_num, "macs_saved": macs_saved}, **settings))


if "Synthetic-v0" not in gymnasium.registry:
    gymnasium.register("Synthetic-v0", entry_point="synthetic:SyntheticEnv", order_enforce=False, disable_env_checker=True)
