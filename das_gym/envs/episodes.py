"""Episodes side by side, of which all environments consist; the base classes of single and of vector environments."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from das_gym.drawing.architecture import RENDER_MODES, LastStep, render
from das_gym.envs.actions import ActionMode, Moves, find_action_mode
from das_gym.envs.scoring import Info, Scorer, first_row
from das_gym.problem.budget import is_whole


class Episodes:
    """m episodes side by side on one problem, whose masks a scorer scores on the same examples in one call."""

    observation_space: spaces.Space[Any]

    def __init__(self, scorer: Scorer, action: str, rows: int = 1) -> None:
        self.scorer = scorer
        self.mode = find_action_mode(action)(scorer.layer_names, scorer.budget, scorer.macs, rows)
        low, high = scorer.bounds()
        bounds = (np.concatenate((low, self.mode.low)), np.concatenate((high, self.mode.high)))
        self.observation_space = spaces.Box(*bounds, dtype=np.float32)

    def copies(self, rows: int) -> Episodes:
        """Return `rows` new episodes of the same kind."""
        return Episodes(self.scorer, self.mode.name, rows)

    def reset(self, rng: np.random.Generator, seeded: bool, options: Any) -> None:
        """Start all episodes; a seed also restarts the reward examples. ValueError for any `options`."""
        check_no_options(options)
        # Gymnasium: a seed makes the episodes that follow repeat, so that examples and counts begin again.
        if seeded:
            self.scorer.restart()
        self.mode.begin()

    def begin(self, which: np.ndarray, rng: np.random.Generator) -> None:
        self.mode.begin(which)

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        return self.mode.step(actions, batch)

    def score(self, moves: Moves, rng: np.random.Generator) -> tuple[np.ndarray, Info]:
        """Return (m,) float64 rewards of a step, and its `info`."""
        rewards, info = self.scorer.score(moves.masks, rng, moves.ended)
        return rewards, info | moves.info

    def score_one(self, moves: Moves, rng: np.random.Generator) -> tuple[float, dict[str, Any]]:
        """Score a step of a single episode, for which tables have a faster way: return plain numbers."""
        reward, info = self.scorer.score_one(moves.masks, rng, bool(moves.ended[0]))
        return reward, info | first_row(moves.info) if moves.info else info

    def observe(self) -> Any:
        """Return the layer statistics and the state of the action space, (m, size) float32."""
        statistics = self.scorer.observation()
        features = self.mode.features()
        # One allocation: np.concatenate would need the statistics repeated for each row first.
        observations = np.empty((self.mode.rows, len(statistics) + features.shape[1]), dtype=np.float32)
        observations[:, : len(statistics)] = statistics
        observations[:, len(statistics) :] = features
        return observations

    def observe_one(self) -> Any:
        statistics = self.scorer.observation()
        return np.concatenate((statistics, self.mode.features()[0])) if self.mode.feature_names else statistics

    def reset_info(self) -> Info:
        """Return the `info` of a reset: that of the full model."""
        info = {key: np.repeat(np.array([value]), self.mode.rows) for key, value in self.scorer.full_model_info().items()}
        return info | self.mode.info()

    def reset_info_one(self) -> dict[str, Any]:
        return self.scorer.full_model_info() | first_row(self.mode.info())

    def render(self, mode: str, last: LastStep | None) -> str | np.ndarray:
        """Return what an episode shows after its last step; see `das_gym.drawing.architecture.render`."""
        return render(mode, self.scorer.architecture(), self.scorer.budget.describe(), last)


class MaskEnv(gymnasium.Env[Any, Any]):
    """An environment of one episode at a time. A subclass makes the episodes.

    Classes of registered environments name Gymnasium's class as a base once more: skrl's `wrap_env` looks there for it.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(self, episodes: Episodes, render_mode: str | None) -> None:
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"`render_mode` is unknown: got {render_mode!r}, expected 'ansi', 'rgb_array' or None")
        self.episodes = episodes
        self.mode = episodes.mode
        self.render_mode = render_mode
        self.observation_space = episodes.observation_space
        self.action_space = self.mode.space
        self._last: LastStep | None = None

    @property
    def last_mask(self) -> np.ndarray | None:
        """(n_layers,) bool: the mask after the last step; None right after a reset."""
        return None if self._last is None else self._last.mask.copy()

    def action_masks(self) -> np.ndarray:
        """Return (n_choices,) bool: actions that have an effect now, as MaskablePPO reads them."""
        return self.mode.action_masks()[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episodes.reset(self.np_random, seed is not None, options)
        self._last = None
        return self.episodes.observe_one(), self.episodes.reset_info_one()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; a complete mask is scored."""
        moves = self.episodes.step(action)
        ended = bool(moves.ended[0])
        reward, info = self.episodes.score_one(moves, self.np_random)
        self._last = LastStep(moves.masks[0], reward, info, ended)
        return self.episodes.observe_one(), reward, ended, False, info

    def render(self) -> Any:
        return None if self.render_mode is None else self.episodes.render(self.render_mode, self._last)


class ScoredEpisodes:
    """What single and vector environments around a scorer have in common."""

    scorer: Scorer
    mode: ActionMode
    np_random: np.random.Generator
    n_layers = property(attrgetter("scorer.n_layers"), doc="How many layers can be skipped.")
    layer_names = property(attrgetter("scorer.layer_names"), doc="Names of the layers, in mask order.")
    skip_num = property(attrgetter("scorer.budget.skip_num"), doc="How many layers are to be skipped, or None.")
    budget = property(attrgetter("scorer.budget"), doc="The constraint on a mask.")
    macs_full = property(attrgetter("scorer.macs.full"), doc="MACs of one example through the model without adapters.")

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the observation's entries: `<layer>/<statistic>`, then those of the action space."""
        return self.scorer.feature_names + self.mode.feature_names

    def get_state(self) -> dict[str, Any]:
        """Return the state as JSON values, also within an episode. `set_state` continues exactly there."""
        state = {"rng": self.np_random.bit_generator.state, "episode": self.mode.get_state()}
        return {**self.scorer.get_state(), **state}

    def set_state(self, state: dict[str, Any]) -> None:
        self.scorer.set_state(state)
        self.np_random.bit_generator.state = state["rng"]
        self.mode.set_state(state["episode"])


class ScoredEnv(ScoredEpisodes, MaskEnv):
    """An environment around a scorer. A subclass makes the scorer; `SkipEnv` documents the environment.

    Args:
        scorer: Scores masks.
        action: A name in `das_gym.envs.actions.ACTION_MODES`.
        render_mode: `ansi`, `rgb_array` or None.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Store the arguments, from which a copy is made."""
        env = super().__new__(cls)
        env._arguments = args, kwargs
        return env

    def __init__(self, scorer: Scorer, action: str = "mask", render_mode: str | None = None) -> None:
        self.scorer = scorer
        super().__init__(Episodes(scorer, action), render_mode)

    def close(self) -> None:
        """Stop the workers, if there are any; they start again when the environment is used again."""
        super().close()
        self.scorer.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle arguments and state: the model is loaded again, from the process-wide cache if possible.

        Gymnasium's EzPickle keeps the arguments only, and would lose generator, examples and a running episode.
        """
        args, kwargs = self._arguments
        costs = {name: cost.as_dict() for name, cost in self.scorer.reported.items() if name != "macs_saved"}
        if costs:  # so that a copy measures nothing again
            kwargs = {**kwargs, "costs": costs}
        state = {
            "state": self.get_state(),
            "spec": self.spec,
            "last": self._last,
            # Spaces have their own generators, whose state a copy needs.
            "action_space": self.action_space,
            "observation_space": self.observation_space,
        }
        return partial(type(self), *args, **kwargs), (), state

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        self.set_state(pickled["state"])
        self.spec = pickled["spec"]
        self._last = pickled["last"]
        self.action_space = self.mode.space = pickled["action_space"]
        self.observation_space = pickled["observation_space"]


class MaskVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies of one environment; a step scores the masks of all episodes that end with it at once.

    Environments reset within the step (autoreset mode SAME_STEP): `final_obs` and `final_info` describe the end of an
    episode. `info` holds the numbers of the step itself; only `action_mask` belongs to the state after the reset. With
    `vectorization_mode="sync"`, `gymnasium.make_vec` makes one that resets in the next step.

    Args:
        num_envs: How many episodes run side by side.
        render_mode: `ansi`, `rgb_array` or None.
        kwargs: Arguments of the single environment.
    """

    metadata = {**MaskEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as in gymnasium.Env
    autoreset_mode = AutoresetMode.SAME_STEP  # TorchRL reads it here, Gymnasium's wrappers in the metadata
    env_class: ClassVar[type[Any]]
    template: Any

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **kwargs: Any) -> None:
        if not is_whole(num_envs) or num_envs < 1:
            raise ValueError(f"`num_envs` is out of range: got {num_envs!r}, expected an integer of at least 1")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.template = self.env_class(render_mode=render_mode, **kwargs)
        self.episodes: Episodes = self.template.episodes.copies(num_envs)
        self.mode = self.episodes.mode
        self.single_observation_space = self.template.observation_space
        self.single_action_space = self.template.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._last: tuple[Moves, np.ndarray, dict[str, np.ndarray]] | None = None

    @property
    def last_masks(self) -> np.ndarray | None:
        """(num_envs, n_layers) bool: masks after the last step, also of episodes that ended with it."""
        return None if self._last is None else self._last[0].masks.copy()

    def action_masks(self) -> np.ndarray:
        """Return (num_envs, n_choices) bool: actions that have an effect now."""
        return self.mode.action_masks()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the first observations. All share one generator, seeded by the first of several seeds."""
        super().reset(seed=self._first_seed(seed))
        self.episodes.reset(self.np_random, self._first_seed(seed) is not None, options)
        self._last = None
        return self.episodes.observe(), with_presence(self.episodes.reset_info(), np.ones(self.num_envs, dtype=bool))

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment, and score the masks that are complete."""
        moves = self.episodes.step(actions, (self.num_envs,))
        ended = moves.ended
        rewards, info = self.episodes.score(moves, self.np_random)
        self._last = (moves, rewards, info)
        final: dict[str, Any] = {}
        if ended.any():
            final_info = with_presence(info, ended)
            final = {"final_obs": self._rows_of(ended), "_final_obs": ended, "final_info": final_info, "_final_info": ended}
            self.episodes.begin(ended, self.np_random)
            if "action_mask" in info:  # the next action is chosen in the state after the reset
                info = info | {"action_mask": self.mode.action_masks()}
        present = with_presence(info, np.ones(self.num_envs, dtype=bool))
        return self.episodes.observe(), rewards, ended, np.zeros(self.num_envs, dtype=bool), present | final

    def render(self) -> tuple[Any, ...] | None:
        """Return the architecture under each episode's last mask; see `das_gym.drawing.architecture.render`."""
        if self.render_mode is None:
            return None
        return tuple(self.episodes.render(self.render_mode, self._last_step(row)) for row in range(self.num_envs))

    def _last_step(self, row: int) -> LastStep | None:
        if self._last is None:
            return None
        moves, rewards, info = self._last
        row_info = {key: values[row] for key, values in info.items()}
        return LastStep(moves.masks[row], float(rewards[row]), row_info, bool(moves.ended[row]))

    def _first_seed(self, seed: int | list[int | None] | None) -> int | None:
        """Return the one seed that counts: all environments share one generator."""
        if not isinstance(seed, (list, tuple)):
            return seed
        if len(seed) != self.num_envs:
            raise ValueError(f"`seed` has the wrong length: got {len(seed)} seeds, expected one or {self.num_envs}")
        return seed[0]

    def _rows_of(self, which: np.ndarray) -> np.ndarray:
        rows = np.fromiter(self.episodes.observe(), dtype=object, count=self.num_envs)
        rows[~which] = None
        return rows


class ScoredVectorEnv(ScoredEpisodes, MaskVectorEnv):
    """Copies of a `ScoredEnv` that share model and examples: one turn of the paper's search is one step of three copies.

    `ScoredVectorEnv(num_envs, scorer=scorer, action="scores")` has episodes around a scorer.
    """

    env_class: ClassVar[type[ScoredEnv]] = ScoredEnv
    template: ScoredEnv
    scorer = property(attrgetter("template.scorer"), doc="Scores the masks of all copies.")

    def close_extras(self, **kwargs: Any) -> None:
        self.template.close()


def check_no_options(options: Any) -> None:
    """Raise ValueError for options of a reset."""
    if options:
        raise ValueError(f"`options` of reset are not supported: got {options!r}, expected None. Leave it out.")


def with_presence(arrays: dict[str, np.ndarray], present: np.ndarray) -> dict[str, Any]:
    """Add `_key` for each key: Gymnasium's convention for which environments have it."""
    return arrays | {f"_{key}": present for key in arrays}
