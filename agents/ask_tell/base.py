"""The base class of ask/tell agents, and the table of agents by name."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, get_origin

import numpy as np
from das_gym.agents.sb3.algorithms import ALGORITHMS

from das_gym.commands.settings import convert
from das_gym.names import add_entry, brief, check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import find_class

AGENTS: dict[str, "str | type[Agent]"] = {
    "bandit": "das_gym.agents.ask_tell.bandit:Bandit",
    "bayes": "das_gym.agents.ask_tell.bayes:Bayes",
    "block_influence": "das_gym.agents.ask_tell.heuristics:BlockInfluence",
    "evolution": "das_gym.agents.ask_tell.evolution:Evolution",
    "evopress": "das_gym.agents.ask_tell.evolution:EvoPress",
    "exhaustive": "das_gym.agents.ask_tell.baselines:Exhaustive",
    "greedy": "das_gym.agents.ask_tell.baselines:Greedy",
    "leave_one_out": "das_gym.agents.ask_tell.baselines:LeaveOneOut",
    "random": "das_gym.agents.ask_tell.baselines:RandomSearch",
    "uniform": "das_gym.agents.ask_tell.heuristics:Uniform",
}
"""Name to class or "module:class". Any other agent is named by its "module:class"."""

Seed = int | np.random.Generator | None
"""A seed, or the generator to draw from."""

Statistics = Mapping[str, Floats]
"""Layer statistics: name to (n_layers,) values."""

MAX_REWARD = 1e100
"""Squares of larger rewards would overflow in the agents."""


class Agent(ABC):
    """Base class of agents with an ask/tell interface: `ask` returns masks to score, `tell` takes their rewards.

    A subclass needs only `ask`. The base class keeps every mask with its reward, and its `best` returns the best one. A
    resumed search repeats the calls of the stopped one, so an agent can be resumed if it draws from `rng` alone.

    Hyperparameters are keyword arguments of the subclass after `space` and `seed`. Searches fill in
    `statistics` with the layer statistics of the environment.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.

    Attributes:
        rewards: Reward of every scored mask, by `mask.tobytes()`, in the order of scoring.
        min_masks: Fewest masks per turn that the agent can learn from.
        free_budget: Whether the agent also asks for masks outside the budget, as greedy removal does. Each costs an
            evaluation. The answer always satisfies the budget.
        races: Whether a search may stop scoring a mask that is clearly worse than the best one so far, and pass a reward
            that is estimated from a part of the reward examples to `tell`.
        draws: Whether the agent's choices depend on the seed.
        statistics_read: Layer statistics that its choices depend on. The masks that a model scores for them
            (`das_gym.problem.statistics.masks_needed`) count as evaluations.
        preferences: (n_layers,) float64, larger for layers that the agent prefers to skip. None if it has none.

    Example:
        >>> from das_gym.agents import Agent, Budget, MaskSpace
        >>> class RandomMask(Agent):
        ...     def ask(self, n):
        ...         return self.space.distinct(n, lambda: self.space.sample(self.rng), self.rng, self.rewards)
        >>> RandomMask(MaskSpace(Budget(n_layers=12, skip_num=4)), seed=0).ask(3).sum(axis=1)
        array([4, 4, 4])
    """

    min_masks: ClassVar[int] = 1
    free_budget: ClassVar[bool] = False
    races: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    statistics_read: tuple[str, ...] = ()
    preferences: Floats | None = None

    def __init__(self, space: MaskSpace, seed: Seed = None) -> None:
        if not isinstance(space, MaskSpace):
            raise TypeError(f"`space` is not a MaskSpace: got {space!r}. Give MaskSpace(Budget(n_layers=12, skip_num=4))")
        self.space = space
        self.n_layers = space.n_layers
        self.rng = np.random.default_rng(seed)
        self.rewards: dict[bytes, float] = {}

    @abstractmethod
    def ask(self, n: int) -> Masks:
        """Return masks to score; call `tell` with their rewards before the next `ask`.

        Args:
            n: Largest number of masks, at least 1.

        Returns:
            (m, n_layers) bool, True = skipped: m <= n distinct masks, none when the agent has finished.
        """

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Learn from the rewards of masks.

        Args:
            masks: (m, n_layers) bool, True = skipped.
            rewards: (m,) float, higher is better.

        Raises:
            ValueError: A shape is wrong, a mask holds values besides 0 and 1, or a reward is not finite or too large.
        """
        masks, rewards = self.check_rewards(masks, rewards)
        self.rewards.update(zip((mask.tobytes() for mask in masks), rewards.tolist(), strict=True))

    def best(self) -> Masks:
        """Return the answer, (n_layers,) bool: the first mask with the highest reward within the budget.

        Raises:
            ValueError: No mask within the budget was scored yet.
        """
        masks = self.scored_masks()
        rewards = np.where(self.space.contains(masks), list(self.rewards.values()), -np.inf)
        if not np.isfinite(rewards).any():
            raise ValueError("no mask within the budget was scored yet. Call tell(masks, rewards) before best()")
        return masks[rewards.argmax()].copy()

    def scored_masks(self) -> Masks:
        """Return the masks in `rewards`, (m, n_layers) bool, in the order of scoring."""
        return masks_of_keys(self.rewards, self.n_layers)

    def skip_probabilities(self) -> Floats | None:
        """Return how likely the agent is to skip each layer, (n_layers,) in 0..1; None if it has no probabilities."""
        return None

    def check_rewards(self, masks: Masks, rewards: Floats) -> tuple[Masks, Floats]:
        """Return (m, n_layers) bool masks and (m,) float64 rewards of `tell`, or raise its ValueError."""
        try:
            given = np.asarray(masks)
            rewards = np.asarray(rewards, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`masks` and `rewards` are not arrays of numbers: got {brief(masks)}, {brief(rewards)}"
            ) from error
        masks = given.astype(bool)
        if (given != masks).any():
            raise ValueError(f"`masks` holds other values: got {given[given != masks][0]}, expected 0 (keep) or 1 (skip)")
        if masks.ndim != 2 or masks.shape[1] != self.n_layers or rewards.shape != masks.shape[:1]:
            shapes = f"{masks.shape} and {rewards.shape}"
            raise ValueError(f"`masks` and `rewards` do not match: got {shapes}, expected (m, {self.n_layers}) and (m,)")
        if not (np.abs(rewards) <= MAX_REWARD).all():
            index = int(np.argmin(np.abs(rewards) <= MAX_REWARD))
            skipped = np.flatnonzero(masks[index]).tolist()
            raise ValueError(
                f"the reward of the mask that skips layers {skipped} is not finite or out of range: got {rewards[index]}, "
                f"expected a number within {MAX_REWARD:g} of 0"
            )
        return masks, rewards


def masks_of_keys(keys: Collection[bytes], n_layers: int) -> Masks:
    """Return the (m, n_layers) masks whose `mask.tobytes()` are `keys`; the array cannot be written to."""
    return np.frombuffer(b"".join(keys), dtype=bool).reshape(len(keys), n_layers)


def ask(agent: Agent, name: str, n: int) -> Masks:
    """Ask an agent for up to `n` masks, and check them: (m, n_layers) bool."""
    return _checked(agent, agent.ask(n), f"agent {name!r}: ask({n})", n, agent.free_budget)


def answer(agent: Agent, name: str) -> Masks:
    """Return an agent's answer, checked: (n_layers,) bool."""
    return _checked(agent, np.asarray(agent.best())[None], f"agent {name!r}: best()", 1, False)[0]


def _checked(agent: Agent, masks: Any, source: str, most: int, free_budget: bool) -> Masks:
    """Return what an agent returned as (m, n_layers) bool, m <= `most`; raise for anything else."""
    if not isinstance(masks, np.ndarray) or not np.isin(masks, (0, 1)).all():
        raise ValueError(f"{source} returned {masks!r}, expected a numpy array of bool, True = skipped")
    if masks.ndim != 2 or masks.shape[1] != agent.n_layers or len(masks) > most:
        raise ValueError(f"{source} returned shape {masks.shape}, expected (m, {agent.n_layers}), m <= {most}")
    masks = masks.astype(bool)
    outside = masks[~agent.space.contains(masks)]
    if len(outside) and not free_budget:
        raise ValueError(
            f"{source} returned a mask outside the budget: it skips layers {np.flatnonzero(outside[0]).tolist()}, expected "
            f"{agent.space.budget.describe()}. Choose masks that `space.contains`; only ask() may return others, with "
            "`free_budget = True`"
        )
    return masks


AgentLike = str | type[Agent] | Callable[..., Agent]
"""The name of an agent; or a subclass of `Agent`, or a function that returns one, given `space` and `seed`."""


@contextmanager
def named_agent(agent: AgentLike) -> Iterator[str]:
    """Return a name for an agent that is valid in the block; TypeError if it is none."""
    if isinstance(agent, str):
        yield agent
        return
    if not callable(agent):
        raise TypeError(f"`agent` is not an agent: got {brief(agent)}, expected a name, or a class of agents")
    name = re.sub(r"\W", "", getattr(agent, "__name__", type(agent).__name__)) or "agent"
    if not isinstance(agent, type):
        made: type[Agent] = type(name, (Agent,), {"__new__": lambda cls, space, seed=None: agent(space, seed)})
    elif any(base.__module__.startswith("stable_baselines3.") for base in agent.__mro__):
        yield f"{agent.__module__}:{agent.__qualname__}"
        return
    elif issubclass(agent, Agent):
        made = agent
    else:
        raise TypeError(f"`agent` is not an agent: got {agent.__name__}, expected a subclass of das_gym.agents.Agent")
    before = AGENTS.get(name)
    AGENTS[name] = made
    try:
        yield name
    finally:
        if before is None:
            del AGENTS[name]
        else:
            AGENTS[name] = before


def register_agent(name: str, agent: str | type[Agent]) -> None:
    """Register a custom agent, so that searches, comparisons and commands accept its name.

    `agent` is its class, or "module:class", which is imported on first use. Complete example: `examples/own_agent.py`.

    Raises:
        TypeError: `agent` is neither.
        ValueError: The name is not allowed or already registered.
    """
    is_path = isinstance(agent, str) and all(agent.partition(":"))
    if not (is_path or (isinstance(agent, type) and issubclass(agent, Agent))):
        raise TypeError(f"`agent` is not an agent: got {agent!r}, expected a subclass of Agent, or 'module:class'")
    add_entry(AGENTS, name, agent, "agent", ALGORITHMS)


def check_agent_name(name: str) -> None:
    """Raise a ValueError for a name that is neither an agent nor an algorithm; "module:class" may be anything."""
    if ":" not in name:
        check_names([name], (*AGENTS, *ALGORITHMS), "agent", own=True)


def agent_class(name: str) -> type[Agent]:
    """Return the class of an agent: a key of `AGENTS`, or "module:class"; ValueError for anything else."""
    if ":" not in name:
        check_names([name], AGENTS, "agent", own=True)
    hint = "Give a name that `das-agents list` shows, or the 'module:class' of a custom agent"
    try:
        cls = find_class(AGENTS.get(name, name))
    except ValueError as error:
        raise ValueError(f"agent {error}. {hint}") from error
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"agent {name!r} is not a subclass of das_gym.agents.Agent. {hint}")
    return cls


def make_agent(
    name: str,
    space: MaskSpace,
    seed: Seed = None,
    agent_kwargs: Mapping[str, Any] | None = None,
    statistics: Statistics | None = None,
) -> Agent:
    """Make a registered ask/tell agent by its name.

    Args:
        name: A key of `AGENTS`, or "module:class" of a custom agent.
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        agent_kwargs: Hyperparameters of the agent.
        statistics: Values of each layer, (n_layers,) float64, by statistic, for agents that read them.

    Raises:
        ValueError: The agent is unknown, or a hyperparameter is unknown or out of range.

    Example:
        >>> from das_gym.agents import Budget, MaskSpace, make_agent
        >>> agent = make_agent("bandit", MaskSpace(Budget(n_layers=12, skip_num=4)), seed=0)
        >>> masks = agent.ask(3)
        >>> agent.tell(masks, masks[:, 0].astype(float))
    """
    cls = agent_class(name)
    kwargs = dict(agent_kwargs or {})
    check_hyperparameters(name, kwargs)
    if "statistics" in inspect.signature(cls).parameters:
        kwargs["statistics"] = {} if statistics is None else statistics  # an empty mapping may still measure on demand
    return cls(space, seed, **kwargs)


def check_hyperparameters(name: str, given: Mapping[str, Any]) -> None:
    """Raise for a hyperparameter that an agent does not have, or outside the range of its annotation, as `PositiveFloat`."""
    check_names(given, agent_hyperparameters(name), f"setting of agent {name!r},")
    parameters = inspect.signature(agent_class(name)).parameters
    for each, value in given.items():
        if get_origin(parameters[each].annotation) is Annotated:
            convert(f"agent_kwargs.{each}", value, parameters[each].annotation)


def agent_hyperparameters(name: str) -> dict[str, Any]:
    """Return the names of an agent's hyperparameters with their defaults."""
    own = list(inspect.signature(agent_class(name)).parameters.values())[2:]  # after space, seed
    return {each.name: each.default for each in own if each.name != "statistics"}
