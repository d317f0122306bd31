"""Open what scores the masks of a search: a model, a table, or an environment of another package."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, cast

import gymnasium
import numpy as np

import das_gym  # noqa: F401  (registers the environments)
from das_gym.commands.commandline import format_command
from das_gym.envs.episodes import ScoredEnv, ScoredVectorEnv
from das_gym.envs.scoring import MaskScorer, Scorer
from das_gym.envs.skip_env import EngineScorer, SkipEnv
from das_gym.names import check_arguments
from das_gym.problem.budget import BUDGET_SETTINGS, Floats, MaskCost, Masks
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem
from das_gym.registration import DEFAULT_ENV

SCORES = ("loss", "metric", "macs", "macs_saved")
"""Scores of each mask that records keep."""

ENV_ID_HINT = f"expected an id such as {DEFAULT_ENV}. `{format_command('agents list')}` shows all"


class ForeignScorer(MaskScorer):
    """Scores masks in a vector environment of another package.

    It has `layer_names` and `macs_full`; each step ends all episodes, its actions are masks, and its `info` holds `SCORES`.
    `cost_of` is needed for a budget by cost. `feature_names`, `<layer>/<statistic>`, name what it observes. If its rewards
    change from step to step, a search can be resumed only with `get_state` and `set_state`. `seed` is that of its reset.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv, seed: int = 0) -> None:
        base = cast(Any, env.unwrapped)
        self.env = env
        self.layer_names = tuple(base.layer_names)
        self.macs_full = int(base.macs_full)
        self._cost_of: Callable[[str], MaskCost] | None = getattr(base, "cost_of", None)
        self._get_state: Callable[[], Any] | None = getattr(base, "get_state", None)
        self._set_state: Callable[[Any], None] | None = getattr(base, "set_state", None)
        observation, _ = env.reset(seed=seed)
        self.layer_statistics = layer_statistics(self.layer_names, getattr(base, "feature_names", ()), observation[0])

    def score(self, masks: Masks) -> tuple[Floats, dict[str, np.ndarray]]:
        """Score up to `num_envs` masks in one step; see `MaskScorer.score`."""
        count = len(masks)
        actions = np.resize(masks, (self.env.num_envs, masks.shape[1]))  # surplus environments repeat the first masks
        _, rewards, _, _, info = self.env.step(actions.astype(np.int8))
        return rewards[:count], {name: info[name][:count] for name in SCORES}

    def cost_of(self, setting: str) -> MaskCost:
        if self._cost_of is None:
            raise ValueError(f"`{setting}` is not supported: {self.env} has no method `cost_of`. Give `skip_num`")
        return self._cost_of(setting)

    def get_state(self) -> Any:
        return None if self._get_state is None else self._get_state()

    def set_state(self, state: Any) -> None:
        if self._set_state is not None:
            self._set_state(state)

    def close(self) -> None:
        self.env.close()


def open_scorer(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    seed: int = 0,
    most: int = 1,
    free: bool = False,
    problem: Problem | None = None,
) -> MaskScorer:
    """Return the scorer of an environment.

    Args:
        env_id: As `gymnasium.make_vec` takes it.
        env_kwargs: Its keyword arguments, the budget among them.
        seed: Seed of the reward examples, where they are drawn.
        most: Largest number of masks in a call of `score`.
        free: Whether masks outside the budget are scored too, see `Agent.free_budget`.
        problem: The loaded problem of the environment, which is scored instead of loading it again.

    Raises:
        ValueError: an id that is unknown, or of another package's environment that has no layers.
    """
    budget = {name: None for name in BUDGET_SETTINGS if free and name in env_kwargs}
    settings = {**env_kwargs, **budget}
    if problem is not None:
        check_arguments(settings, [*signature(SkipEnv).parameters, *BUDGET_SETTINGS, *ProblemConfig.__dataclass_fields__])
        own = signature(EngineScorer).parameters
        limits = {name: value for name, value in settings.items() if name in BUDGET_SETTINGS}
        scorer: Scorer = EngineScorer(problem, limits, **{k: v for k, v in settings.items() if k in own})
    else:
        with explained_errors(env_id):
            env = gymnasium.make_vec(env_id, num_envs=most, **settings)
        if not isinstance(env.unwrapped, ScoredVectorEnv):
            return ForeignScorer(env, seed)
        scorer = env.unwrapped.template.scorer
    scorer.restart(seed)
    return scorer


def make_scored(env_id: str, env_kwargs: Mapping[str, Any]) -> Any:
    """Make a single environment of das_gym, without wrappers; its keyword arguments have the budget among them."""
    with explained_errors(env_id):
        env = gymnasium.make(env_id, **env_kwargs).unwrapped
    if not isinstance(env, ScoredEnv):
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id}, {ENV_ID_HINT}")
    return env


@contextmanager
def explained_errors(env_id: str) -> Iterator[None]:
    """Raise a ValueError with a hint for an unknown environment, or another package's that rejects the arguments."""
    try:
        yield
    except gymnasium.error.DependencyNotInstalled:
        raise
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise  # a library is missing; Gymnasium's own error, for the module of an id, names none
        hint = f"`{format_command('agents list')}` shows all."
        raise ValueError(f"`env_id` is not registered: {str(error).rstrip('.?')}. {hint}") from error
    except TypeError as error:
        if str(gymnasium.spec(env_id.rpartition(":")[2]).entry_point).startswith("das_gym."):
            raise
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id} ({error}), {ENV_ID_HINT}") from error


def layer_statistics(layer_names: Sequence[str], feature_names: Iterable[str], observation: Floats) -> dict[str, Floats]:
    """Return name to (n_layers,) values of each statistic that an (n_features,) observation holds for every layer."""
    values = dict(zip(feature_names, observation.tolist(), strict=False))
    features = {name: [f"{layer}/{name}" for layer in layer_names] for name in (each.rpartition("/")[2] for each in values)}
    complete = {name: own for name, own in features.items() if values.keys() >= set(own)}
    return {name: np.array([values[feature] for feature in own]) for name, own in complete.items()}
