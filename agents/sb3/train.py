"""Search with an algorithm of Stable-Baselines3.

`masks_per_turn` is the number of parallel environments, whose masks are scored in one engine call. A run folder holds
`agent.zip`, which `load` of SB3's class reads; the record of the search, as for every other agent; and TensorBoard's files,
if it is installed.

**Resuming.** SB3 saves neither random generators nor rollouts and replay buffers. So a resumed search starts again with its
seed: its networks train as before, and the masks in `checkpoint.json`, written every `save_every` turns, need not be scored
by the model again. The result is that of an uninterrupted search.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from das_gym.agents.sb3.algorithms import choose_action, find_algorithm, make_model, with_defaults
from das_gym.agents.searching.record import (
    Checkpoint,
    OnTurn,
    SearchProgress,
    SearchResult,
    Turn,
    bind_folder,
    conclude,
    with_costs,
)
from das_gym.agents.searching.scorer import SCORES, open_scorer
from das_gym.agents.settings import SearchConfig
from gymnasium.vector import VectorEnv, VectorWrapper

from das_gym.envs.episodes import ScoredVectorEnv
from das_gym.files import write_bytes
from das_gym.models.random_states import kept_random_states
from das_gym.problem.problem import Problem

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.logger import KVWriter

MODEL_FILE = "agent.zip"
LOGGED_LINES = 20
"""Lines of metrics that an algorithm with a replay buffer logs in a search."""

STEPS_PER_LAYER = 4
"""A search ends after this many steps per layer and mask, even if masks are left to score."""


@dataclass(frozen=True, eq=False)
class TrainedAgent:
    """A trained algorithm and the result of its search."""

    result: SearchResult
    """The record. Its mask is the better of the policy's answer and the best scored mask."""
    model: BaseAlgorithm
    action: str
    policy: dict[str, Any]
    """The policy's own answer: `mask`, `reward` and scores."""
    starved: bool


def train_sb3(
    config: SearchConfig,
    folder: str | os.PathLike[str] | None = None,
    on_turn: OnTurn | None = None,
    writers: Sequence[KVWriter] = (),
    problem: Problem | None = None,
) -> TrainedAgent:
    """Train an algorithm of SB3 until the evaluations are spent, and score its answer.

    A search that has ended in the folder is repeated from its scores, since the trained algorithm is returned too.

    Args:
        config: The search.
        folder: Folder of the search, see `das_gym.agents.search`; it also gets the trained algorithm.
        on_turn: Called with each `Turn` after it.
        writers: Where the metrics of SB3 go, besides TensorBoard in the folder.
        problem: The loaded problem of the environment; None loads it.

    Example:
        >>> from das_gym.agents import SearchConfig
        >>> from das_gym.agents.sb3.train import train_sb3
        >>> trained = train_sb3(SearchConfig("DAS-METER-VQA-Tabular-v0", agent="ppo", skip_num=4, evaluations=40))
        >>> trained.result.n_skipped
        4
    """
    from stable_baselines3.common.vec_env import VecMonitor

    from das_gym.envs.sb3_vec_env import SB3VecEnv

    run_folder = None if folder is None else Path(folder)
    config = with_costs(config, run_folder, problem)
    cls, algorithm = find_algorithm(config.agent)
    hyperparameters = with_defaults(cls, algorithm, config.agent_kwargs, config.masks_per_turn)
    action = choose_action(algorithm, config.action)
    opened = open_scorer(config.env_id, config.mask_kwargs, config.seed, problem=problem)
    with kept_random_states(), closing(opened) as scorer, SearchProgress(config, on_turn) as report:
        env = ScoredVectorEnv(config.masks_per_turn, scorer=scorer, action=action)
        recorder = Recorder(env, config, run_folder, report)
        model = make_model(cls, hyperparameters, VecMonitor(SB3VecEnv(recorder)), config.seed)
        known = None
        if run_folder is not None:
            bind_folder(run_folder, config, scorer)
            known = Checkpoint.load(run_folder, len(scorer.layer_names))
        if known is None:
            scorer.warn_at_chance()
        else:
            recorder.saved_turns = len(known.turns)  # a checkpoint with fewer turns would lose scores
            for turn in known.turns:
                scorer.remember(np.array(turn.masks, dtype=bool), turn.known_scores())
        with torch_threads(1):
            _learn(model, recorder, action, list(writers))
            state = env.get_state()
            chosen = play_episode(model, ScoredVectorEnv(1, scorer=scorer, action=action), config.seed)
            scorer.set_state(state)  # the episode may have moved the reward examples on
            result, policy = conclude(config, scorer, chosen, recorder.turns, hyperparameters, None)
    if run_folder is not None:
        buffer = io.BytesIO()
        model.save(buffer)
        write_bytes(run_folder / MODEL_FILE, buffer.getvalue())
        result.save(run_folder)
    return TrainedAgent(result, model, action, policy, recorder.starved)


def _learn(model: BaseAlgorithm, recorder: Recorder, action: str, writers: list[KVWriter]) -> None:
    from stable_baselines3.common.logger import Logger, SummaryWriter, TensorBoardOutputFormat
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    if recorder.folder is not None and SummaryWriter is not None:  # TensorBoard is installed
        writers.append(TensorBoardOutputFormat(str(recorder.folder / "tensorboard")))
    logger = Logger(folder=None, output_formats=writers)
    model.set_logger(logger)
    evaluations = recorder.config.evaluations
    base = cast(Any, recorder.unwrapped)
    # in updates; for an algorithm with a replay buffer, in episodes
    interval = max(1, evaluations // LOGGED_LINES) if isinstance(model, OffPolicyAlgorithm) else 1
    steps_per_mask = max(1, base.skip_num or len(base.layer_names) // 2) if action == "sequence" else 1
    try:
        while True:  # masks outside the budget leave evaluations over
            # SB3's schedules depend on the steps that the rest takes if all masks count.
            steps = max(1, evaluations - recorder.evaluations) * steps_per_mask
            model.learn(steps, log_interval=interval, reset_num_timesteps=False)
    except BudgetSpentError:
        if logger.name_to_value:
            logger.dump(model.num_timesteps)
    finally:
        logger.close()


def play_episode(model: BaseAlgorithm, env: ScoredVectorEnv, seed: int) -> np.ndarray:
    """Return the (n_layers,) bool mask that a policy chooses in an environment of one episode, without exploration."""
    reads_masks = "action_masks" in inspect.signature(model.predict).parameters  # as MaskablePPO's
    observation, _ = env.reset(seed=seed)
    state = None
    ended = np.ones(1, dtype=bool)
    while True:
        masks = {"action_masks": env.action_masks()} if reads_masks else {}
        chosen, state = model.predict(observation, state=state, episode_start=ended, deterministic=True, **masks)
        observation, _, ended, _, _ = env.step(chosen)
        if ended[0]:
            return cast(np.ndarray, env.last_masks)[0]


class BudgetSpentError(Exception):
    """Raised in place of the next step when no evaluation is left."""


class Recorder(VectorWrapper):
    """Record every scored mask as a turn of the search, and end the search when its budget is spent.

    A turn is one step: the masks that it scored, in one engine call. Masks beyond the evaluations of the search are left
    out. Masks outside the environment's budget are not scored and do not count. `env` is a `ScoredVectorEnv`, wrapped or
    not. A checkpoint is written to `folder` every `save_every` turns; it holds `saved_turns`.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], config: SearchConfig, folder: Path | None = None, on_turn: OnTurn | None = None
    ) -> None:
        super().__init__(env)
        self.config = config
        self.folder = folder
        self.on_turn = on_turn
        self.turns: list[Turn] = []
        self.saved_turns = 0
        self.evaluations = self.steps = 0
        self._threads = torch.get_num_threads()  # before `train_sb3` reduces them
        self._base = cast(ScoredVectorEnv, env.unwrapped)
        self.max_steps = config.evaluations * STEPS_PER_LAYER * len(self._base.layer_names)

    @property
    def starved(self) -> bool:
        """Whether the search ended early since almost none of its masks was within the environment's budget."""
        return self.steps >= self.max_steps and self.evaluations < self.config.evaluations

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments, or raise BudgetSpentError."""
        if self.evaluations >= self.config.evaluations or self.steps >= self.max_steps:
            raise BudgetSpentError
        with torch_threads(self._threads):
            observations, rewards, terminated, truncated, info = self.env.step(actions)
        self.steps += self.num_envs
        ended = terminated | truncated
        if ended.any():
            self._record(rewards, ended, info.get("final_info", info))
        return observations, rewards, terminated, truncated, info

    def _record(self, rewards: np.ndarray, ended: np.ndarray, info: dict[str, Any]) -> None:
        masks = cast(np.ndarray, self._base.last_masks)
        broken = np.flatnonzero(ended & ~np.isfinite(rewards))
        if len(broken):
            skipped = np.flatnonzero(masks[broken[0]]).tolist()
            raise ValueError(f"the reward of the mask that skips layers {skipped} is not finite: got {rewards[broken[0]]}")
        # A step may score more masks than are left: the surplus is not recorded, as if it had not been scored.
        rows = np.flatnonzero(ended & info["feasible"])[: self.config.evaluations - self.evaluations]
        if not len(rows):
            return
        turn = Turn.from_scores(masks[rows], rewards[rows], {name: info[name][rows] for name in SCORES})
        self.turns.append(turn)
        self.evaluations += len(rows)
        if self.folder is not None and len(self.turns) - self.saved_turns >= self.config.save_every:
            self.saved_turns = len(self.turns)
            Checkpoint(None, {}, tuple(self.turns)).save(self.folder)
        if self.on_turn is not None:
            self.on_turn(turn)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads to `count` within the block.

    SB3's networks are too small to be split over cores: they are several times faster with one thread. Only the engine uses
    all.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
