"""Settings of the commands of `python -m agents` that keep runs."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from das_gym.agents.ask_tell.base import AGENTS, agent_hyperparameters
from das_gym.agents.ask_tell.front import DRAWN
from das_gym.agents.sb3.algorithms import ALGORITHMS, find_algorithm, hyperparameters, is_algorithm
from das_gym.agents.searching.config import SearchConfig, add_environment

from das_gym.commands.runs import ResumableSettings
from das_gym.commands.settings import NonNegativeInt, PositiveInt, Range, Seed, choice, nested
from das_gym.files import at_home
from das_gym.problem.budget import BUDGET_SETTINGS, SAVED, BudgetSettings
from das_gym.problem.config import ProblemConfig
from das_gym.registration import DEFAULT_ENV, ENVIRONMENTS

FRONT_AGENT = "das_gym.agents.ask_tell.front:FrontSearch"

COST_SETTINGS = {word: setting for setting, word in SAVED.items()}
"""The setting that asks for a share of each cost."""

COMPARED = tuple(name for name in AGENTS if name != "exhaustive")
"""The agents that are compared by default: all of ours but the one that scores every mask."""


@dataclass(frozen=True)
class SearchSettings(ResumableSettings, SearchConfig):
    """The settings of `python -m agents search`."""


def complete_search(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a search, by dotted names, with its environment and the agent's own in `agent_kwargs`.

    `learning_rate=10` is short for `agent_kwargs.learning_rate=10`, if the agent has it and the command no such setting.
    """
    completed = add_environment(values)
    agent = completed.get("agent", SearchConfig.agent)
    if not isinstance(agent, str) or not (agent in AGENTS or is_algorithm(agent)):
        return completed
    known = {each.name for each in dataclasses.fields(SearchSettings)}
    others = [name for name in completed if name.partition(".")[0] not in known]
    if not others:
        return completed
    accepted = hyperparameters(find_algorithm(agent)[0]) if is_algorithm(agent) else agent_hyperparameters(agent)
    own = {name for name in others if name in accepted}
    return {f"agent_kwargs.{name}" if name in own else name: value for name, value in completed.items()}


@dataclass(frozen=True)
class EnvironmentSettings(ResumableSettings):
    """Settings shared by the commands that run several searches on an environment.

    Attributes:
        env_id: Id of the environment; `DAS-METER-VQA-Tabular-v0` and the like read a table.
        problem: Model and data of the environment.
        env_kwargs: Further arguments of the environment, as in `env_kwargs.reward=metric`, `env_kwargs.table=FILE`.
        seed: Random seed of the first search.
    """

    group: ClassVar[str] = "Search"

    env_id: str = choice(DEFAULT_ENV, ENVIRONMENTS, others=True)
    problem: ProblemConfig = nested(ProblemConfig)
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    seed: Seed = 0


@dataclass(frozen=True)
class ParetoSettings(EnvironmentSettings):
    """The settings of `python -m agents pareto`. The budget of the environment is ignored.

    Attributes:
        cost: Cost that is traded off against the loss. Latency is measured on this machine.
        evaluations: Number of masks to score.
        masks_per_turn: Masks that are scored in one call.
        reward_examples: Number of examples that a mask is scored on. None means the task's own number.
    """

    cost: str = choice("MACs", tuple(SAVED.values()))
    evaluations: Annotated[int, Range(DRAWN)] = 400
    masks_per_turn: PositiveInt = 8
    reward_examples: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        batches = self.env_kwargs.get("reward_batches", "fixed")
        if batches != "fixed":
            raise ValueError(f"`reward_batches` has to be 'fixed' for a front: got {batches!r}")

    @property
    def search(self) -> SearchConfig:
        """The search: by the loss, whatever the environment rewards."""
        budget: dict[str, Any] = {COST_SETTINGS[self.cost]: 0.0}
        return SearchConfig(
            self.env_id,
            FRONT_AGENT,
            problem=self.problem,
            evaluations=self.evaluations,
            seed=self.seed,
            masks_per_turn=self.masks_per_turn,
            reward_examples=self.reward_examples,
            env_kwargs={**self.env_kwargs, "reward": "neg_loss", "macs_price": 0.0},
            **budget,
        )


@dataclass(frozen=True)
class TableSettings(ResumableSettings):
    """The settings of `python -m agents table`.

    Attributes:
        reward_examples: Number of examples of the reward split to score masks on. None uses all.
        test_examples: Number of examples of the test split to score masks on. None uses all.
        max_skipped: Most layers that a mask may skip. None scores every mask.
        each: Keep the score of each example, not only the mean. Any reward batch can then be looked up; the file grows to
            some MB.
        latency_batch: Examples per forward pass when the latency of each layer is measured on this machine. None measures
            no latency.
        out: File to write. None is `table.npz` in the run's folder.
    """

    group: ClassVar[str] = "Table"

    problem: ProblemConfig = nested(ProblemConfig)
    reward_examples: PositiveInt | None = None
    test_examples: PositiveInt | None = None
    max_skipped: NonNegativeInt | None = None
    each: bool = False
    latency_batch: PositiveInt | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.problem.precision != "float32":
            raise ValueError(f"`precision`: got {self.problem.precision!r}; tables are exact, leave it out")
        if self.out is not None and at_home(self.out).is_dir():  # it is written at the end, perhaps after hours
            raise ValueError(f"`out` is a folder: got {self.out}, expected a file such as table.npz")


@dataclass(frozen=True)
class CompareSettings(EnvironmentSettings, BudgetSettings):
    """The settings of `python -m agents compare`.

    Attributes:
        agents: Agents to compare, or "module:class" of custom ones.
        seeds: Number of searches of each agent, with seeds from `seed` on.
        evaluations: Masks that a search may score.
        masks_per_turn: Masks that are scored between two answers.
        live: Whether to score masks with the model instead of the environment's table.
        agent_kwargs: Hyperparameters by agent, as in `agent_kwargs.bandit.learning_rate=5`.
    """

    group: ClassVar[str] = "Comparison"

    agents: tuple[str, ...] = choice(COMPARED, ChainMap[str, Any](ALGORITHMS, AGENTS), others=True)
    seeds: PositiveInt = 50
    evaluations: PositiveInt = 120
    masks_per_turn: PositiveInt = 3
    live: bool = False
    agent_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.agents:
            raise ValueError(f"`agents` is empty: expected one or more of {', '.join(AGENTS)}")
        for name in self.agent_kwargs.keys() - set(self.agents):
            raise ValueError(
                f"agent_kwargs.{name} is given, but {name!r} is not compared; agents are {', '.join(self.agents)}"
            )

    def search(self, agent: str) -> SearchConfig:
        """Return one search with an agent."""
        entry = ENVIRONMENTS.get(self.env_id)
        return SearchConfig(
            self.env_id if self.live or entry is None else entry.tabular_id,
            agent,
            problem=self.problem,
            evaluations=self.evaluations,
            seed=self.seed,
            masks_per_turn=self.masks_per_turn,
            agent_kwargs=self.agent_kwargs.get(agent, {}),
            env_kwargs=self.env_kwargs,
            **{name: getattr(self, name) for name in BUDGET_SETTINGS},
        )
