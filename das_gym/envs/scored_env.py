"""What every environment of masks is, wherever its scores come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from das_gym.config import check_names
from das_gym.envs.actions import find_action_mode
from das_gym.envs.rendering import RENDER_MODES, Shown, check_render_mode, render
from das_gym.envs.scoring import Scorer
from das_gym.problem.budget import is_whole


class ScoredEnv(gymnasium.Env[np.ndarray, Any]):
    """An environment around a scorer. A subclass makes the scorer; `SkipEnv` says what an environment is like.

    Args:
        scorer: Scores masks.
        action: A name in `das_gym.envs.actions.ACTION_MODES`.
        render_mode: `ansi`, `rgb_array` or None.
        arguments: What the subclass was made with: pickling makes it again.

    Raises:
        ValueError: a setting that is not allowed.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012 - as in gymnasium.Env

    n_layers = property(attrgetter("scorer.n_layers"), doc="How many layers can be skipped.")
    layer_names = property(attrgetter("scorer.layer_names"), doc="Names of the layers, in mask order.")
    skip_num = property(attrgetter("scorer.budget.skip_num"), doc="How many layers are to be skipped, or None.")
    budget = property(attrgetter("scorer.budget"), doc="What a mask must satisfy.")
    macs_full = property(attrgetter("scorer.macs.full"), doc="MACs of one example without adapters: what savings refer to.")

    def __init__(self, scorer: Scorer, action: str, render_mode: str | None, arguments: dict[str, Any]) -> None:
        check_render_mode(render_mode)
        self._arguments = {**arguments, **scorer.budget.known_costs}  # nothing is measured anew
        self.scorer = scorer
        self.render_mode = render_mode
        self.mode = find_action_mode(action)(scorer.layer_names, scorer.budget, scorer.macs)
        low, high = scorer.bounds()
        self.observation_space = spaces.Box(
            np.concatenate((low, self.mode.low)), np.concatenate((high, self.mode.high)), dtype=np.float32
        )
        self.action_space = self.mode.space
        self._last: Shown | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of the observation is: `<layer>/<statistic>`, and what the action space adds."""
        return self.scorer.feature_names + self.mode.feature_names

    @property
    def last_mask(self) -> np.ndarray | None:
        """(n_layers,) bool: what the last step skipped; None right after a reset."""
        return None if self._last is None else self._last.mask.copy()

    def action_masks(self) -> np.ndarray:
        """(n_choices,) bool: actions that have an effect now; what MaskablePPO reads.

        Raises:
            ValueError: in this action space nothing can be masked.
        """
        return self.mode.action_masks()[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation, and the `info` of the unskipped model; a seed also restarts the reward examples."""
        super().reset(seed=seed)
        if seed is not None:
            self.scorer.restart()
        self.mode.begin()
        self._last = None
        return self._observation(), self.scorer.unskipped_info() | first_row(self.mode.info())

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action; a mask that is complete is scored."""
        moves = self.mode.take(action)
        ended = bool(moves.ended[0])
        reward, info = self.scorer.score_one(moves.masks, self.np_random, ended)
        info |= first_row(moves.info)
        self._last = Shown(moves.masks[0], reward, info, ended)
        return self._observation(), reward, ended, False, info

    def render(self) -> Any:
        """The architecture under the last mask; see `das_gym.envs.rendering.render`."""
        return render(self.render_mode, self.scorer, self._last)

    def close(self) -> None:
        """End what works for it elsewhere; used again, the environment begins it anew."""
        super().close()
        self.scorer.close()

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and state: the model is loaded again, from the process-wide cache if it is there.

        Gymnasium's EzPickle keeps the arguments alone: generator, examples and an episode under way would begin anew.
        """
        spaces_ = {"action_space": self.action_space, "observation_space": self.observation_space}  # with their generators
        return {"arguments": self._arguments, "state": self.get_state(), "spec": self.spec, "last": self._last, **spaces_}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        self.__init__(**pickled["arguments"])  # type: ignore[misc]
        self.set_state(pickled["state"])
        self.spec, self._last = pickled["spec"], pickled["last"]
        self.action_space = self.mode.space = pickled["action_space"]
        self.observation_space = pickled["observation_space"]

    def get_state(self) -> dict[str, Any]:
        """What the rest depends on, JSON-able, amid an episode too; give it to `set_state` to go on exactly from here."""
        return {
            **self.scorer.get_state(),
            "rng": self.np_random.bit_generator.state,
            "episode": self.mode.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self.scorer.set_state(state)
        self.np_random.bit_generator.state = state["rng"]
        self.mode.set_state(state["episode"])

    def _observation(self) -> np.ndarray:
        statistics = self.scorer.observation()
        return np.concatenate((statistics, self.mode.features()[0])) if self.mode.feature_names else statistics


def check_vector(num_envs: Any, settings: Mapping[str, Any]) -> None:
    """Refuse what a vector environment cannot be made of.

    Raises:
        ValueError: no number of environments, or `max_episode_steps`, which Gymnasium's own vectorisation takes.
    """
    if not is_whole(num_envs) or num_envs < 1:
        raise ValueError(f"num_envs={num_envs!r}: a vector environment has at least one, a whole number")
    if "max_episode_steps" in settings:
        raise ValueError(
            f"max_episode_steps={settings['max_episode_steps']}: episodes end with their budget here, leave it out; or "
            'let Gymnasium cut them off, by make_vec(..., vectorization_mode="sync"), without shared engine calls'
        )


def first_seed(seed: int | Sequence[int | None] | None, num_envs: int) -> int | None:
    """The seed of a vector environment, whose environments share one generator: of one each, the first.

    Raises:
        ValueError: another number of seeds than of environments.
    """
    if not isinstance(seed, (list, tuple)):
        return seed  # type: ignore[return-value]
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds for {num_envs} environments: give one each, or one number")
    return seed[0]


def find_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The autoreset mode of a vector environment, by itself or its value.

    Raises:
        ValueError: neither SAME_STEP nor NEXT_STEP.
    """
    modes = {known.value: known for known in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)}
    value = mode.value if isinstance(mode, AutoresetMode) else mode
    check_names([value], modes, "autoreset_mode")
    return modes[value]


def first_row(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The first row of each: plain numbers where it is one."""
    return {key: values[0].item() if values.ndim == 1 else values[0] for key, values in arrays.items()}
