"""Search with an algorithm of Stable-Baselines3.

    from das_gym.agents.sb3.train import train_sb3

    trained = train_sb3(SearchConfig("DAS-METER-VQA-v0", agent="ppo", skip_num=4, evaluations=500, masks_per_turn=4))

`masks_per_turn` is the number of parallel environments, whose masks are scored in one engine call. A run folder holds
`agent.zip`, which SB3's `load` and our `load_sb3` read; its description `sb3.json`; the record of the search, as for every
other agent; and TensorBoard's files, if it is installed.

**Resuming.** SB3 saves neither random generators nor rollouts and replay buffers. So a resumed search starts again with its
seed: its networks train as before, and the masks in `checkpoint.json`, written every `save_every` turns, need not be scored
by the model again. The result is that of an uninterrupted search.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from das_gym.agents.sb3.algorithms import (
    choose_action,
    find_algorithm,
    make_model,
    supports_action_masks,
    with_action,
    with_defaults,
)
from das_gym.agents.sb3.recorder import BudgetSpentError, Recorder, answer_from, torch_threads
from das_gym.agents.searching.config import SearchConfig, with_costs
from das_gym.agents.searching.record import FORMAT, Checkpoint, OnTurn, SearchResult, Turn, best_row
from das_gym.agents.searching.setup import find_scorer, score_masks

from das_gym.files import explain_damage, read_json, write_bytes, write_json
from das_gym.problem.mask_space import skipped_names

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.logger import KVWriter

AGENT = "agent.zip"
DESCRIPTION = "sb3.json"
LOGS = 20
"""Lines of metrics that an algorithm with a replay buffer logs in a search."""


@dataclass(frozen=True, eq=False)
class TrainedAgent:
    """A trained algorithm and the result of its search.

    Attributes:
        result: The record. Its mask is the better of the policy's answer and the best scored mask.
        model: The trained algorithm.
        action: The action space of the search.
        policy: The policy's own answer: `mask`, `reward` and scores.
        starved: Whether the search ended early because nearly none of its masks was within the budget.
    """

    result: SearchResult
    model: BaseAlgorithm
    action: str
    policy: dict[str, Any]
    starved: bool


def train_sb3(
    config: SearchConfig,
    folder: str | os.PathLike[str] | None = None,
    on_turn: OnTurn | None = None,
    resume: bool = False,
    writers: Sequence[KVWriter] = (),
) -> TrainedAgent:
    """Train an algorithm of SB3 until the evaluations are spent, and score its answer.

    Args:
        config: What to search. `agent` is an algorithm, `agent_kwargs` are its hyperparameters.
        folder: Run folder. None keeps nothing.
        on_turn: Called after every step that scored masks, with the turn.
        resume: Continue from the checkpoint in `folder`, if there is one.
        writers: Where SB3's metrics go, in addition to TensorBoard if there is a folder.

    Raises:
        ValueError: a setting is not valid for the environment or the algorithm, or a reward is not finite.

    Example:
        >>> from das_gym.agents import SearchConfig
        >>> from das_gym.agents.sb3.train import train_sb3
        >>> trained = train_sb3(SearchConfig("DAS-METER-VQA-Tabular-v0", agent="ppo", skip_num=4, evaluations=40))
        >>> trained.result.n_skipped
        4
    """
    run_folder = None if folder is None else Path(folder)
    config = with_costs(config, run_folder if resume else None)
    training = _Training(config, run_folder, resume)
    with closing(training.recorder), torch_threads(1):
        training.learn(on_turn, writers)
        return training.finish()


class _Training:
    """A running search."""

    def __init__(self, config: SearchConfig, folder: Path | None, resume: bool) -> None:
        from stable_baselines3.common.vec_env import VecMonitor

        from das_gym.envs.sb3_vec_env import SB3VecEnv

        self.config, self.folder = config, folder
        self._saved_turns = 0
        cls, algorithm = find_algorithm(config.agent)
        self.hyperparameters = with_defaults(cls, algorithm, config.agent_kwargs, config.masks_per_turn)
        self.action = choose_action(algorithm, config.action)
        kwargs = with_action(config.mask_kwargs, self.action)
        env = gymnasium.make_vec(config.env_id, num_envs=config.masks_per_turn, **kwargs)
        try:
            base: Any = env.unwrapped
            self.base, self.layer_names = base, tuple(base.layer_names)
            self.recorder = Recorder(env, config.evaluations)
            self.model = make_model(cls, self.hyperparameters, VecMonitor(SB3VecEnv(self.recorder)), config.seed)
            known = Checkpoint.load(folder, config, len(self.layer_names)) if resume and folder is not None else None
            if known is not None:
                self._saved_turns = len(known.turns)  # a checkpoint with fewer turns would lose scores
                answer_from(find_scorer(base), known.turns)
        except BaseException:
            env.close()
            raise

    def learn(self, on_turn: OnTurn | None, writers: Sequence[KVWriter]) -> None:
        """Train until the evaluations are spent."""
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

        self.recorder.on_turn = on_turn
        logger = Logger(folder=None, output_formats=[*writers, *_tensorboard(self.folder)])
        self.model.set_logger(logger)
        # in updates; for an algorithm with a replay buffer, in episodes
        interval = max(1, self.config.evaluations // LOGS) if isinstance(self.model, OffPolicyAlgorithm) else 1
        try:
            while True:  # masks outside the budget leave evaluations over
                steps = self._steps_left()
                self.model.learn(steps, self._keep_checkpoint, log_interval=interval, reset_num_timesteps=False)
        except BudgetSpentError:
            if logger.name_to_value:
                logger.dump(self.model.num_timesteps)
        finally:
            logger.close()

    def finish(self) -> TrainedAgent:
        """Score the answer, and write the record, the agent and its description."""
        config = self.config
        best = best_row(self.recorder.turns, config.mask_kwargs)
        chosen = policy_mask(self.model, config.env_id, self.action, config.seed, **config.mask_kwargs)
        # In one call, on the same examples: rewards of different batches cannot be compared.
        policy, other = self._score(np.stack((chosen, chosen if best is None else np.array(best["mask"], dtype=bool))))
        answer = max(policy, other, key=lambda row: -np.inf if row["reward"] is None else float(row["reward"]))
        result = SearchResult.of(
            config, self.base, answer, best or answer, self.recorder.turns, None, agent_kwargs=self.hyperparameters
        )
        if self.folder is not None:
            buffer = io.BytesIO()
            self.model.save(buffer)
            write_bytes(self.folder / AGENT, buffer.getvalue())
            cls = type(self.model)
            description = {
                "format": FORMAT,
                "algorithm": config.agent,
                "class": f"{cls.__module__}:{cls.__qualname__}",
                "action": self.action,
                "evaluations": self.recorder.evaluations,
                "steps": int(self.model.num_timesteps),
                "hyperparameters": self.hyperparameters,
                "policy": {**policy, "skipped_layers": skipped_names(self.layer_names, policy["mask"])},
            }
            write_json(self.folder / DESCRIPTION, description)
            result.save(self.folder)
        return TrainedAgent(result, self.model, self.action, policy, self.recorder.starved)

    def _steps_left(self) -> int:
        """Return how many steps the rest of the evaluations takes if all masks count; SB3's schedules depend on it."""
        left = max(1, self.config.evaluations - self.recorder.evaluations)
        if self.action != "sequence":
            return left
        return left * max(1, self.base.skip_num or len(self.layer_names) // 2)

    def _keep_checkpoint(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        """Write a checkpoint every `save_every` turns. SB3 calls this after each step."""
        del locals_, globals_
        turns = self.recorder.turns
        if self.folder is not None and len(turns) - self._saved_turns >= self.config.save_every:
            self._saved_turns = len(turns)
            Checkpoint({}, None, tuple(turns)).save(self.folder, self.config)
        return True

    def _score(self, masks: np.ndarray) -> list[dict[str, Any]]:
        """Return (m, n_layers) masks with their scores, all on the examples that come next, where a replay scores them."""
        with closing(gymnasium.make_vec(self.config.env_id, num_envs=len(masks), **self.config.mask_kwargs)) as env:
            env.reset(seed=self.config.seed)
            scored: Any = env.unwrapped
            if hasattr(scored, "set_state"):  # go on with the examples of the search, but with this environment's episodes
                own = {name: value for name, value in scored.get_state().items() if name in ("episode", "waiting")}
                scored.set_state({**self.base.get_state(), **own})
            return Turn.of(masks, *score_masks(env, masks)).rows


def load_sb3(
    folder: str | os.PathLike[str], device: str = "cpu", trust: bool = False
) -> tuple[BaseAlgorithm, dict[str, Any]]:
    """Load the trained algorithm of a run, ready to `predict`, and its description from `sb3.json`."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no {DESCRIPTION} in {folder}: no algorithm of SB3 was trained there")
    if not trust:
        raise ValueError(
            f"loading {Path(folder) / AGENT} unpickles it, which can run any code. Pass `trust=True` to confirm"
        )
    description = read_json(path)
    with explain_damage(path, "train the agent again"):
        cls, _ = find_algorithm(str(description["class"]))
    return cls.load(Path(folder) / AGENT, device=device), description


def policy_mask(model: BaseAlgorithm, env_id: str, action: str, seed: int = 0, **env_kwargs: Any) -> np.ndarray:
    """Return the mask that a policy chooses without exploration, (n_layers,) bool; `action` is what it was trained with."""
    env = gymnasium.make_vec(env_id, num_envs=1, **with_action(env_kwargs, action))
    base: Any = env.unwrapped
    state, start = None, np.ones(1, dtype=bool)
    observation, _ = env.reset(seed=seed)
    try:
        while True:
            masks = {"action_masks": base.action_masks()} if supports_action_masks(type(model)) else {}
            chosen, state = model.predict(observation, state=state, episode_start=start, deterministic=True, **masks)
            observation, _, terminated, truncated, _ = env.step(chosen)
            start = terminated | truncated
            if start[0]:
                last = getattr(base, "last_masks", None)  # of environments whose action is not a mask
                return np.asarray(chosen if last is None else last, dtype=bool)[0]
    finally:
        env.close()


def _tensorboard(folder: Path | None) -> list[KVWriter]:
    """Return TensorBoard's writer, if there is a folder and TensorBoard is installed."""
    from stable_baselines3.common.logger import SummaryWriter, TensorBoardOutputFormat

    if folder is None:
        return []
    if SummaryWriter is None:
        print("TensorBoard is not installed, so its files are not written. To get them: pip install 'das_gym[sb3]'")
        return []
    return [TensorBoardOutputFormat(str(folder / "tensorboard"))]
