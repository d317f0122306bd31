"""One interface of a search to what scores its masks: models, tables, and environments of other packages."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import Statistics

import das_gym  # noqa: F401  (registers the environments)
from das_gym.commands.commandline import format_command
from das_gym.engine.kept_sums import KeptSums
from das_gym.engine.scores import Scores
from das_gym.envs.episodes import ScoredEnv, ScoredVectorEnv
from das_gym.envs.scoring import Scorer
from das_gym.envs.skip_env import EngineScorer, SkipEnv
from das_gym.names import check_arguments
from das_gym.problem.budget import BUDGET_SETTINGS, Floats, MaskCost, Masks
from das_gym.problem.config import ProblemConfig, warn_at_chance
from das_gym.problem.loading import Problem
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import DEFAULT_ENV, SUITE_IDS, many_objectives

SCORES = ("loss", "metric", "macs", "macs_saved")
"""Scores of each mask that records keep."""

OURS = f"expected an id such as {DEFAULT_ENV}. `{format_command('agents list')}` shows all"


class MaskScorer(ABC):
    """Scores the masks of a search.

    Attributes:
        layer_names: Names of the skippable units, in mask order.
        macs_full: MACs of one example through the full model.
        racing_examples: Number of reward examples if masks can be scored on single ones, and the reward depends on the
            losses alone; None otherwise.
        statistics: Layer statistics of the full model, float64: those observed, and others on demand.
        own: The scorer of the environment, if it is one of das_gym's: an `EngineScorer`, or a table's; None for others.
    """

    layer_names: tuple[str, ...]
    macs_full: int
    racing_examples: int | None = None
    statistics: Statistics = MappingProxyType({})
    own: Scorer | None = None

    @abstractmethod
    def score(self, masks: Masks) -> tuple[Floats, dict[str, np.ndarray]]:
        """Score (m, n_layers) bool masks, True = skipped, on the examples of the next step.

        Returns:
            (m,) rewards, and numbers by name, `SCORES` among them, (m,) each.
        """

    def score_examples(self, masks: Masks, start: int, stop: int) -> Scores:
        """Return (m, stop - start) losses and metrics of (m, n_layers) masks on a block of the reward examples."""
        raise NotImplementedError

    def rewards_and_info(self, masks: Masks, losses: Floats, metrics: Floats) -> tuple[Floats, dict[str, np.ndarray]]:
        """Return what `score` returns for (m,) mean losses and metrics that `score_examples` gave."""
        raise NotImplementedError

    @abstractmethod
    def cost_of(self, setting: str) -> MaskCost:
        """Return the cost of masks by a key of `das_gym.problem.budget.SAVED`."""

    def checkpoint_sums(self, folder: Path) -> None:  # noqa: B027 - a table is quick, and other packages' scorers are unknown
        """Keep what is scored so far of a call of `score` in a file of the folder, for a search that is killed."""

    def warn_at_chance(self) -> None:  # noqa: B027 - the scores of a table or of another package are what they are
        """Score the full model, and warn where it is no better than chance on the reward examples."""

    def count_statistic_masks(self, statistics: Iterable[str] | None) -> int:
        """Return how many masks are scored for layer statistics by name; None = for those observed."""
        return 0

    def blocks(self) -> dict[str, Any] | None:
        """Return what `das_gym.problem.statistic_inputs.measure_blocks` returns of the full model; None if it is unknown."""
        return None

    def layout(self) -> dict[str, Any]:
        """Return the fields of a `SearchResult` from `units` to `table_model`; empty if they are unknown."""
        return {}

    def get_state(self) -> Any:
        """Return what determines the next examples, as JSON values; None if there is nothing of the kind."""
        return None

    def set_state(self, state: Any) -> None:  # noqa: B027 - there may be no state
        """Restore what `get_state` returned."""

    def close(self) -> None:  # noqa: B027 - there may be nothing to release
        """Release resources outside of this process."""


class OwnScorer(MaskScorer):
    """Scores masks with the scorer of an environment of das_gym; `seed` is that of reward examples that are drawn."""

    own: Scorer

    def __init__(self, scorer: Scorer, seed: int = 0) -> None:
        self.own = scorer
        self.layer_names = scorer.layer_names
        self.macs_full = int(scorer.macs.full)
        self.racing_examples = scorer.racing_examples
        self._rng = np.random.default_rng(seed)
        scorer.restart()

    @cached_property
    def statistics(self) -> Statistics:  # type: ignore[override]  # it can be set, which mypy does not see
        return LayerStatistics(self._observed(), self.own.statistic)

    def score(self, masks: Masks) -> tuple[Floats, dict[str, np.ndarray]]:
        return self.own.score(masks, self._rng)

    def score_examples(self, masks: Masks, start: int, stop: int) -> Scores:
        return self.own.score_examples(masks, start, stop)

    def rewards_and_info(self, masks: Masks, losses: Floats, metrics: Floats) -> tuple[Floats, dict[str, np.ndarray]]:
        return self.own.rewards_and_info(masks, losses, metrics)

    def cost_of(self, setting: str) -> MaskCost:
        return self.own.cost_of(setting)

    def count_statistic_masks(self, statistics: Iterable[str] | None) -> int:
        return self.own.observation_masks if statistics is None else self.own.count_statistic_masks(statistics)

    def checkpoint_sums(self, folder: Path) -> None:
        if isinstance(self.own, EngineScorer):
            self.own.problem.evaluator.kept_sums = KeptSums(folder / "scoring.json")

    def warn_at_chance(self) -> None:
        if isinstance(self.own, EngineScorer):
            problem = self.own.problem
            score = self.own.full_model_info()["metric"]
            warn_at_chance(problem.backbone.config, problem.task, self.own.fixed_examples, score, "reward")

    def blocks(self) -> dict[str, Any] | None:
        return self.own.blocks()

    def layout(self) -> dict[str, Any]:
        statistics = {name: values.tolist() for name, values in self._observed().items()}
        return {"units": self.own.architecture().units, "statistics": statistics, **self.own.table_origin}

    def get_state(self) -> Any:
        return {**self.own.get_state(), "rng": self._rng.bit_generator.state}

    def set_state(self, state: Any) -> None:
        self.own.set_state(state)
        self._rng.bit_generator.state = state["rng"]

    def close(self) -> None:
        if isinstance(self.own, EngineScorer):
            self.own.problem.evaluator.kept_sums = None
        self.own.close()

    def _observed(self) -> dict[str, Floats]:
        columns = self.own.observation().reshape(self.own.n_layers, -1).astype(np.float64)
        return {each.name: columns[:, index] for index, each in enumerate(self.own.statistics)}


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
        self.statistics = layer_statistics(self.layer_names, getattr(base, "feature_names", ()), observation[0])

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
        ValueError: an id that is unknown, or whose environment has several problems or rewards.
    """
    check_single(env_id)
    budget = {name: None for name in BUDGET_SETTINGS if free and name in env_kwargs}
    settings = {**env_kwargs, **budget}
    if problem is not None:
        check_arguments(settings, [*signature(SkipEnv).parameters, *BUDGET_SETTINGS, *ProblemConfig.__dataclass_fields__])
        own = signature(EngineScorer).parameters
        limits = {name: value for name, value in settings.items() if name in BUDGET_SETTINGS}
        return OwnScorer(EngineScorer(problem, limits, **{k: v for k, v in settings.items() if k in own}), seed)
    with explained_errors(env_id):
        env = gymnasium.make_vec(env_id, num_envs=most, **settings)
    if isinstance(env.unwrapped, ScoredVectorEnv):
        return OwnScorer(env.unwrapped.template.scorer, seed)
    return ForeignScorer(env, seed)


def make_scored(env_id: str, env_kwargs: Mapping[str, Any]) -> Any:
    """Make a single environment of das_gym, without wrappers; its keyword arguments have the budget among them."""
    check_single(env_id)
    with explained_errors(env_id):
        env = gymnasium.make(env_id, **env_kwargs).unwrapped
    if not isinstance(env, ScoredEnv):
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id}, {OURS}")
    return env


def check_single(env_id: str) -> None:
    """Raise a ValueError for the environment of a suite, or one with several rewards."""
    name = f"{env_id.rpartition(':')[2].removesuffix('-v0')}-v0"  # Gymnasium finds ids without a version, too
    if name in SUITE_IDS or name.endswith(many_objectives("")):
        raise ValueError(f"`env_id` is a suite or has several rewards, which searches do not support: got {env_id}, {OURS}")


@contextmanager
def explained_errors(env_id: str) -> Iterator[None]:
    """Raise a ValueError with a hint for an unknown environment, or one of another package, which rejects our arguments."""
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
        raise ValueError(f"`env_id` is not an environment of das_gym: got {env_id} ({error}), {OURS}") from error


class LayerStatistics(dict[str, Floats]):
    """Name to (n_layers,) values of the observed statistics; `measure` gives other `STATISTICS` when they are looked up."""

    def __init__(self, observed: Statistics, measure: Callable[[str], Floats]) -> None:
        super().__init__(observed)
        self._measure = cache(lambda name: np.asarray(measure(name), dtype=np.float64))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in STATISTICS

    def __missing__(self, name: str) -> Floats:
        return self._measure(name)


def layer_statistics(layer_names: Sequence[str], feature_names: Iterable[str], observation: Floats) -> dict[str, Floats]:
    """Return name to (n_layers,) values of each statistic that an (n_features,) observation holds for every layer."""
    values = dict(zip(feature_names, observation.tolist(), strict=False))
    features = {name: [f"{layer}/{name}" for layer in layer_names] for name in (each.rpartition("/")[2] for each in values)}
    complete = {name: own for name, own in features.items() if values.keys() >= set(own)}
    return {name: np.array([values[feature] for feature in own]) for name, own in complete.items()}
