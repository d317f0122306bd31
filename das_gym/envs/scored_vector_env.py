"""The vector environment: n episodes side by side, their masks on the same examples in one engine call."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from das_gym.config import read_array
from das_gym.envs.actions import Moves, find_action_mode
from das_gym.envs.rendering import Shown, render
from das_gym.envs.scored_env import ScoredEnv, check_vector, find_autoreset_mode, first_seed
from das_gym.envs.scoring import Outcome


class ScoredVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` copies of one environment that share model and examples: the paper's turn is one step of three.

    A step scores the masks of all episodes that end with it in one engine call. Environments reset within the step
    (autoreset mode SAME_STEP): `final_obs` and `final_info` hold what an ended episode ended with. Since every reset
    tells the same, `info` holds the numbers of the step itself: the keys of `SkipEnv`, each an array of (num_envs,);
    only `action_mask` is of the state after the reset, the one that the next action is for.

    With `autoreset_mode=AutoresetMode.NEXT_STEP`, which Gymnasium's vector wrappers of observations want, an episode ends
    with its last observation, and the next step begins a new one in the place of its action: reward 0, `info` of a reset.

    Args:
        num_envs: How many masks a step scores.
        render_mode: `ansi`, `rgb_array` or None.
        autoreset_mode: `AutoresetMode.SAME_STEP` or `AutoresetMode.NEXT_STEP`, or its value.
        kwargs: As for the environment.

    Raises:
        ValueError: another autoreset mode; `max_episode_steps`, which Gymnasium's own vectorisation takes; what the
            environment refuses.
    """

    metadata = {**ScoredEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as in gymnasium.Env
    env_class: ClassVar[type[ScoredEnv]]

    n_layers = property(attrgetter("template.n_layers"), doc="How many layers can be skipped.")
    layer_names = property(attrgetter("template.layer_names"), doc="Names of the layers, in mask order.")
    feature_names = property(attrgetter("template.feature_names"), doc="What each entry of an observation is.")
    skip_num = property(attrgetter("template.skip_num"), doc="How many layers are to be skipped, or None.")
    budget = property(attrgetter("template.budget"), doc="What a mask must satisfy.")
    macs_full = property(attrgetter("template.macs_full"), doc="MACs of one example through the model without adapters.")

    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **kwargs: Any,
    ) -> None:
        check_vector(num_envs, kwargs)
        mode = find_autoreset_mode(autoreset_mode)
        self.metadata, self.autoreset_mode = {**self.metadata, "autoreset_mode": mode}, mode
        self._at_once = mode is AutoresetMode.SAME_STEP
        self._waiting = np.zeros(num_envs, dtype=bool)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.template = self.env_class(render_mode=render_mode, **kwargs)
        scorer = self.template.scorer
        self.mode = find_action_mode(self.template.mode.name)(scorer.layer_names, scorer.budget, scorer.macs, num_envs)
        self.single_observation_space = self.template.observation_space
        self.single_action_space = self.template.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._last: tuple[Moves, Outcome] | None = None

    @property
    def last_masks(self) -> np.ndarray | None:
        """(num_envs, n_layers) bool: what each episode skipped after the last step, those that ended included."""
        return None if self._last is None else self._last[0].masks.copy()

    def action_masks(self) -> np.ndarray:
        """(num_envs, n_choices) bool: actions that have an effect now.

        Raises:
            ValueError: in this action space nothing can be masked.
        """
        return self.mode.action_masks()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observations. They share one generator: of a list of seeds, the first counts.

        Raises:
            ValueError: another number of seeds than of environments.
        """
        _, info = self.template.reset(seed=first_seed(seed, self.num_envs), options=options)
        self._np_random, self._np_random_seed = self.template.np_random, self.template.np_random_seed
        self.mode.begin()
        self._waiting[:] = False
        self._last = None
        arrays = {key: np.repeat(np.array([value]), self.num_envs, axis=0) for key, value in info.items()}
        return self._observations(), _with_presence(arrays, np.ones(self.num_envs, dtype=bool))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment; score the masks that are complete on the same examples."""
        moves, begun = self._moves(actions), self._waiting
        ended = moves.ended
        scored = self.template.scorer.score(moves.masks, self.template.np_random, ended)
        told = scored.info | moves.info
        if begun.any():
            for key, value in self.template.scorer.unskipped_info().items():
                told[key][begun] = value
        final: dict[str, Any] = {}
        if not self._at_once:
            self._waiting = ended.copy()
        elif ended.any():
            final = self._final(told, ended)
            self.mode.begin(ended)
        choices = self._next_choices() if final or begun.any() else {}  # else those of `told` hold
        info = _with_presence(told | choices, np.ones(self.num_envs, dtype=bool))
        self._last = (moves, scored)
        return self._observations(), scored.rewards, ended, np.zeros(self.num_envs, dtype=bool), info | final

    def _moves(self, actions: np.ndarray) -> Moves:
        """What the actions do; episodes that waited for this step begin, whatever theirs are."""
        begun = self._waiting
        self.mode.begin(begun)
        moves = self.mode.take(actions, (self.num_envs,))
        if not begun.any():
            return moves
        self.mode.begin(begun)
        idle = {key: values & ~begun for key, values in moves.info.items() if key == "invalid_action"}
        return Moves(moves.masks & ~begun[:, None], moves.ended & ~begun, moves.info | idle)

    def render(self) -> tuple[Any, ...] | None:
        """The architecture under each episode's last mask; see `das_gym.envs.rendering.render`."""
        if self.render_mode is None:
            return None
        shown = [None] * self.num_envs if self._last is None else [self._shown(*self._last, i) for i in range(self.num_envs)]
        return tuple(render(self.render_mode, self.template.scorer, each) for each in shown)

    def close_extras(self, **kwargs: Any) -> None:
        """As `ScoredEnv.close`."""
        self.template.close()

    def _shown(self, moves: Moves, scored: Outcome, index: int) -> Shown:
        return Shown(moves.masks[index], float(scored.rewards[index]), scored.row(index), bool(moves.ended[index]))

    def get_state(self) -> dict[str, Any]:
        """What the rest depends on, JSON-able, amid episodes too; give it to `set_state` to go on exactly from here."""
        waiting = {} if self._at_once else {"waiting": self._waiting.tolist()}
        return {**self.template.get_state(), "episode": self.mode.get_state(), **waiting}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self.template.set_state({**state, "episode": self.template.mode.get_state()})
        self.mode.set_state(state["episode"])
        self._waiting = read_array("waiting", state.get("waiting", np.zeros(self.num_envs)), (self.num_envs,), bool)

    def _observations(self) -> np.ndarray:
        statistics = self.template.scorer.observation()
        observations = np.empty((self.num_envs, len(self.mode.low) + len(statistics)), dtype=np.float32)
        observations[:, : len(statistics)] = statistics
        if self.mode.feature_names:
            observations[:, len(statistics) :] = self.mode.features()
        return observations

    def _next_choices(self) -> dict[str, np.ndarray]:
        return {key: values for key, values in self.mode.info().items() if key == "action_mask"}

    def _final(self, told: dict[str, np.ndarray], ended: np.ndarray) -> dict[str, Any]:
        """What Gymnasium's wrappers expect of environments that reset within the step."""
        observations = np.fromiter(self._observations(), dtype=object, count=self.num_envs)
        observations[~ended] = None
        final_info = _with_presence(told, ended)
        return {"final_obs": observations, "_final_obs": ended, "final_info": final_info, "_final_info": ended}


def _with_presence(arrays: dict[str, np.ndarray], present: np.ndarray) -> dict[str, Any]:
    """Gymnasium's convention: beside each key, `_key` says which environments have it."""
    return arrays | {f"_{key}": present for key in arrays}
