"""Any algorithm of Stable-Baselines3 as a search for masks.

    from das_gym.agents.sb3.train import train_sb3

    trained = train_sb3("ppo", env_id="DAS-METER-VQA-v0", skip_num=4, evaluations=500)
    trained = train_sb3(MyAlgorithm, action="sequence", hyperparameters={"learning_rate": 1e-3})     # a class of one's own

What is kept in a run folder: `agent.zip`, which SB3's own `load` and our `load_sb3` read; `sb3.json`, which says whose it
is; the record of the search, as every other agent leaves it; TensorBoard's files, where it is installed.

**Resuming.** A stopped search goes on from `agent.zip` and `sb3_checkpoint.json`, written every `save_every` turns.
Restored are the parameters, the optimizer, the number of steps, all scored masks, and which examples the environments
score on next, so that the record of a resumed search replays (`python -m agents validate`). Not restored are the
algorithm's random generators, episodes under way, rollouts not yet learned from and replay buffers (SB3 saves none): a
resumed search ends well, but elsewhere than an undisturbed one. Without a stop, the same seed gives the same result.
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import check_number
from das_gym.agents.sb3.algorithms import (
    ActionSpaceError,
    choose_action,
    find_algorithm,
    make_model,
    with_defaults,
)
from das_gym.agents.sb3.checkpoint import CHECKPOINT, Checkpoint
from das_gym.agents.sb3.config import BY_SB3S_NAMES, SB3Config, with_action
from das_gym.agents.sb3.policy import AGENT, DESCRIPTION, agent_file, policy_mask
from das_gym.agents.sb3.recorder import BudgetSpentError, Recorder, torch_threads
from das_gym.agents.searching.loop import with_costs
from das_gym.agents.searching.record import FORMAT, SCORES, SearchResult, Turn, best_row, plain_numbers

from das_gym.config import build, check_names
from das_gym.files import write_bytes, write_json
from das_gym.problem.mask_space import skipped_names

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.logger import KVWriter

LOGS = 20

SETTINGS = (
    *(BY_SB3S_NAMES.get(field.name, field.name) for field in dataclasses.fields(SB3Config)),
    *("own", "on_turn", "writers", "resume"),
)
"""What may be given to `train_sb3` by name."""

OnTurn = Callable[[Turn, tuple[str, ...]], Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """What a search leaves behind.

    Attributes:
        result: The record. Its mask is the better of the policy's answer and the best mask that was scored.
        model: The trained algorithm.
        action: The action space that it searched in.
        policy: The policy's own answer: `mask`, `reward` and scores.
        starved: Whether it ended early, because nearly none of its masks kept the budget.
    """

    result: SearchResult
    model: BaseAlgorithm
    action: str
    policy: dict[str, Any]
    starved: bool


def train_sb3(
    algorithm: str | type[BaseAlgorithm],
    folder: str | os.PathLike[str] | None = None,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    n_envs: int = SB3Config.masks_per_turn,
    own: Mapping[str, Any] | None = None,
    on_turn: OnTurn | None = None,
    writers: Sequence[KVWriter] = (),
    resume: bool = False,
    **settings: Any,
) -> Trained:
    """Train an algorithm of SB3 until the budget of evaluations is spent, and score its answer.

    Args:
        algorithm: A key of `das_gym.agents.sb3.algorithms.ALGORITHMS`, "module:class", or a subclass of SB3's BaseAlgorithm.
        folder: Where everything is kept; None keeps nothing.
        hyperparameters: Its hyperparameters by name, JSON-able.
        n_envs: Environments side by side, whose masks are scored in one engine call.
        own: More arguments of the algorithm's constructor, of any type; no record holds them.
        on_turn: Called after every step that scored masks, with them and the layer names.
        writers: Where SB3's metrics go, besides TensorBoard where there is a folder.
        resume: Go on from the checkpoint in `folder`, if there is one; see the top of this file for what that restores.
        settings: The other fields of `SB3Config`.

    Raises:
        ValueError: a setting that the environment or the algorithm refuses; a reward that is not a number.
    """
    cls, known = find_algorithm(algorithm)
    check_number("n_envs", n_envs, minimum=1, whole=True)
    check_names(settings, SETTINGS)
    given = {"agent": known.name, "agent_kwargs": dict(hyperparameters or {}), "masks_per_turn": n_envs}
    place = None if folder is None else Path(folder)
    checkpoint = place / CHECKPOINT if resume and place is not None else None
    config = with_costs(build(SB3Config, {**given, **settings}), checkpoint)
    before = Checkpoint.load(place, config) if resume and place is not None else Checkpoint()
    parameters = with_defaults(cls, known, config.agent_kwargs, n_envs)
    model, recorder, action = _make(config, cls, parameters, choose_action(known, config.action), before, place, own)
    try:
        source = place if before.turns else config.start_from
        if source is not None:
            _set_parameters(model, agent_file(source))
        if before.turns:
            model.num_timesteps = before.steps
            model.set_random_seed((config.seed + recorder.evaluations) % 2**32)
        training = _Training(config, model, recorder, action, parameters, place)
        with torch_threads(1):
            training.run(on_turn, writers)
        return training.finish()
    finally:
        recorder.close()


def _set_parameters(model: BaseAlgorithm, file: Path) -> None:
    """Read networks and optimizers from an `agent.zip`, and none of its code: SB3 2.7 itself would unpickle them.

    Raises:
        ValueError: the file is damaged, or of another algorithm, policy or environment.
    """
    import torch

    try:
        with zipfile.ZipFile(file) as archive:
            parts = [name for name in archive.namelist() if name.endswith(".pth") and name != "pytorch_variables.pth"]
            contents = {name.removesuffix(".pth"): io.BytesIO(archive.read(name)) for name in parts}
        tensors = {name: torch.load(part, model.device, weights_only=True) for name, part in contents.items()}
        model.set_parameters(tensors, device=model.device)
    except Exception as error:  # of zipfile, torch or SB3
        raise ValueError(f"{file} cannot be read as an agent of this search ({error}). Train it again") from error


def _make(
    config: SB3Config,
    cls: type[BaseAlgorithm],
    parameters: Mapping[str, Any],
    actions: Sequence[str],
    before: Checkpoint,
    folder: Path | None,
    own: Mapping[str, Any] | None,
) -> tuple[BaseAlgorithm, Recorder, str]:
    """The algorithm on its environments, in the first of those action spaces that it takes."""
    from stable_baselines3.common.vec_env import VecMonitor

    from das_gym.envs.sb3_vec_env import SB3VecEnv

    refusals = []
    for action in actions:
        kwargs = with_action(config.mask_kwargs, action)
        env = gymnasium.make_vec(config.env_id, num_envs=config.masks_per_turn, **kwargs)
        try:
            recorder = Recorder(env, config.evaluations, before.turns, before.env, (folder or Path()) / CHECKPOINT)
            model = make_model(cls, parameters, VecMonitor(SB3VecEnv(recorder)), config.seed, own)
        except ActionSpaceError as refusal:
            env.close()
            refusals.append(refusal)
        except BaseException:
            env.close()
            raise
        else:
            return model, recorder, action
    raise refusals[0]


class _Training:
    """One search under way.

    Args:
        config: What to search.
        model: With what.
        recorder: Its environments.
        action: Their action space.
        parameters: All hyperparameters of the model.
        folder: Where everything is kept, or None.
    """

    def __init__(
        self,
        config: SB3Config,
        model: BaseAlgorithm,
        recorder: Recorder,
        action: str,
        parameters: dict[str, Any],
        folder: Path | None,
    ) -> None:
        self.config, self.model, self.recorder, self.folder = config, model, recorder, folder
        self.action, self.parameters = action, parameters
        self.saved_turns = len(recorder.turns)
        base: Any = recorder.env.unwrapped
        self.base, self.layer_names = base, tuple(base.layer_names)

    def run(self, on_turn: OnTurn | None, writers: Sequence[KVWriter]) -> None:
        """Train until the budget is spent."""
        from stable_baselines3.common.logger import Logger

        if on_turn is not None:
            for turn in self.recorder.turns:
                on_turn(turn, self.layer_names)
            self.recorder.on_turn = lambda turn: on_turn(turn, self.layer_names)
        logger = Logger(folder=None, output_formats=[*writers, *_tensorboard(self.folder)])
        self.model.set_logger(logger)
        try:
            while True:  # masks off the budget leave evaluations over
                steps = self._steps_left()
                self.model.learn(steps, self._keep_checkpoint, log_interval=self._log_interval(), reset_num_timesteps=False)
        except BudgetSpentError:
            if logger.name_to_value:
                logger.dump(self.model.num_timesteps)
        finally:
            logger.close()

    def finish(self) -> Trained:
        """Score the answer and keep everything."""
        config = self.config
        best = best_row(self.recorder.turns, config.mask_kwargs)
        chosen = policy_mask(self.model, config.env_id, self.action, config.seed, **config.mask_kwargs)
        policy, other = self._score(np.stack((chosen, chosen if best is None else np.array(best["mask"], dtype=bool))))
        answer = policy if _reward(policy) >= _reward(other) else other
        result = SearchResult.of(
            config,
            self.base,
            answer,
            best or answer,
            self.recorder.turns,
            statistics_read=None,
            env_kwargs=config.mask_kwargs,
            agent_kwargs=self.parameters,
            preferences=None,
            skip_probabilities=None,
        )
        if self.folder is not None:
            self._save_agent(self.folder)
            write_json(self.folder / DESCRIPTION, self._description(policy))
            result.save(self.folder)
        return Trained(result, self.model, self.action, policy, self.recorder.starved)

    def _steps_left(self) -> int:
        """How many steps the rest of the budget takes, if each has an effect: what SB3's schedules go by."""
        left = max(1, self.config.evaluations - self.recorder.evaluations)
        if self.action != "sequence":
            return left
        return left * max(1, self.base.skip_num or self.recorder.n_layers // 2)

    def _log_interval(self) -> int:
        """Updates between two lines of metrics; for an algorithm with a replay buffer, episodes."""
        from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

        return max(1, self.config.evaluations // LOGS) if isinstance(self.model, OffPolicyAlgorithm) else 1

    def _save_agent(self, folder: Path) -> None:
        buffer = io.BytesIO()
        self.model.save(buffer)
        write_bytes(folder / AGENT, buffer.getvalue())

    def _keep_checkpoint(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        """SB3's callback after each step: every `save_every` turns, write what `resume` goes on from."""
        del locals_, globals_
        turns = self.recorder.turns
        if self.folder is not None and len(turns) - self.saved_turns >= self.config.save_every:
            self.saved_turns = len(turns)
            self._save_agent(self.folder)
            state = self.base.get_state() if hasattr(self.base, "get_state") else None
            Checkpoint(int(self.model.num_timesteps), tuple(turns), state).save(self.folder, self.config)
        return True

    def _score(self, masks: np.ndarray) -> list[dict[str, Any]]:
        """Masks ((m, n_layers) bool) and their scores, all on the examples that come next: so replays find them."""
        env = gymnasium.make_vec(self.config.env_id, num_envs=len(masks), **self.config.mask_kwargs)
        try:
            env.reset(seed=self.config.seed)
            base: Any = env.unwrapped
            if hasattr(base, "set_state"):
                base.set_state({**self.base.get_state(), "episode": base.get_state().get("episode")})
            _, rewards, _, _, info = env.step(masks.astype(np.int8))
        finally:
            env.close()
        columns = {"mask": masks.astype(int).tolist(), "reward": plain_numbers(rewards)}
        columns |= {name: plain_numbers(np.asarray(info[name])) for name in SCORES}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _description(self, policy: dict[str, Any]) -> dict[str, Any]:
        """What `sb3.json` holds: how to load `agent.zip`, and what the policy answers by itself."""
        cls = type(self.model)
        return {
            "format": FORMAT,
            "algorithm": self.config.agent,
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "action": self.action,
            "evaluations": self.recorder.evaluations,
            "steps": int(self.model.num_timesteps),
            "hyperparameters": self.parameters,
            "policy": {**policy, "skipped_layers": skipped_names(self.layer_names, policy["mask"])},
        }


def _tensorboard(folder: Path | None) -> list[KVWriter]:
    """TensorBoard's writer, where there is a folder; where TensorBoard is not installed, a line that says so."""
    from stable_baselines3.common.logger import SummaryWriter, TensorBoardOutputFormat

    if folder is None:
        return []
    if SummaryWriter is None:
        print("TensorBoard is not installed, its files are left out; to get them: pip install 'das_gym[sb3]'")
        return []
    return [TensorBoardOutputFormat(str(folder / "tensorboard"))]


def _reward(row: Mapping[str, Any]) -> float:
    return -np.inf if row["reward"] is None else float(row["reward"])
