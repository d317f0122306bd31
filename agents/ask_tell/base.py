"""What an agent without gradients is: it is asked for masks and told their rewards."""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from das_gym.config import add_entry, check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import find_class

AGENTS: dict[str, str | type[Agent]] = {
    "angular": "das_gym.agents.ask_tell.angular:Angular",
    "bandit": "das_gym.agents.ask_tell.bandit:Bandit",
    "bayes": "das_gym.agents.ask_tell.bayes:Bayes",
    "block_influence": "das_gym.agents.ask_tell.block_influence:BlockInfluence",
    "cross_entropy": "das_gym.agents.ask_tell.cross_entropy:CrossEntropy",
    "evolution": "das_gym.agents.ask_tell.evolution:Evolution",
    "evopress": "das_gym.agents.ask_tell.evopress:EvoPress",
    "exhaustive": "das_gym.agents.ask_tell.exhaustive:Exhaustive",
    "greedy": "das_gym.agents.ask_tell.greedy:Greedy",
    "heat_kernel": "das_gym.agents.ask_tell.heat_kernel:HeatKernel",
    "interlace": "das_gym.agents.ask_tell.interlace:Interlace",
    "leave_one_out": "das_gym.agents.ask_tell.greedy:LeaveOneOut",
    "linear_regression": "das_gym.agents.ask_tell.regression:LinearRegression",
    "one_shot": "das_gym.agents.ask_tell.one_shot:OneShot",
    "policy": "das_gym.agents.policy.agent:Policy",
    "policy_bayes": "das_gym.agents.policy.agent:PolicyBayes",
    "quadratic_regression": "das_gym.agents.ask_tell.regression:QuadraticRegression",
    "random": "das_gym.agents.ask_tell.random_search:RandomSearch",
    "sleb": "das_gym.agents.ask_tell.greedy:Greedy",
    "uniform": "das_gym.agents.ask_tell.uniform:Uniform",
}
"""Name to class or "module:class". An agent outside this table is named by its "module:class" itself."""

MAX_REWARD = 1e100
"""Beyond, what agents compute from rewards would overflow."""


class Agent(ABC):
    """Chooses masks that keep a budget.

    A search is `masks = ask(n)`, `tell(masks, rewards)`, again and again, and then `best()`.
    A subclass takes its own hyperparameters as keyword arguments after `seed`; one that is named `statistics` is no
    hyperparameter but gets what the environment observes: statistic name to (n_layers,) values. One that is named `blocks`
    is filled in by commands, see `Angular`.

    Args:
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.

    Raises:
        TypeError: no `MaskSpace`.

    Attributes:
        min_masks: The fewest masks a turn that this agent learns from.
        free_budget: Whether it also asks for masks off the budget on its way (greedy removal does). They cost an
            evaluation like any other; its answer keeps the budget.
        examples_share: Share (0..1] of the reward examples on which the masks of the last ask are to be scored. Such a
            mask costs that share of an evaluation, and its reward is not comparable to others.
        draws: Whether it draws at random. The others do the same whatever the seed.
        statistics_read: Names of the layer statistics that its choices depend on. The masks that a model scores for them
            (`das_gym.problem.statistics.masks_needed`) are evaluations of its search.
        preferences: (n_layers,) float64, the larger the rather skipped; None for an agent that has none.
    """

    min_masks: ClassVar[int] = 1
    free_budget: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    examples_share: float = 1.0
    statistics_read: tuple[str, ...] = ()
    preferences: Floats | None = None

    def __init__(self, space: MaskSpace, seed: int | np.random.Generator | None = None) -> None:
        if not isinstance(space, MaskSpace):
            name = type(self).__name__
            example = f"{name}(MaskSpace(Budget(n_layers=12, skip_num=4)))"
            raise TypeError(f"{name}({space!r}): give the masks to choose from, such as {example}")
        self.space = space
        self.n_layers = space.n_layers
        self.rng = np.random.default_rng(seed)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have the subclass's `ask` refuse an n below 1."""
        super().__init_subclass__(**kwargs)
        if "ask" in vars(cls):
            setattr(cls, "ask", _from_one_on(vars(cls)["ask"]))  # noqa: B010 - mypy takes methods for constant

    @abstractmethod
    def ask(self, n: int) -> Masks:
        """Up to `n` masks to score next.

        Tell their rewards before asking again: asked twice in a row, some agents give the same masks twice.

        Args:
            n: How many are wanted, at least 1.

        Returns:
            (m, n_layers) bool, True = skipped, distinct, m <= n: fewer when no more exist, none when the
            agent is done.

        Raises:
            ValueError: n is no whole number from 1 on; every subclass refuses that without a line of its own.
        """

    @abstractmethod
    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Learn from scored masks.

        Args:
            masks: (m, n_layers) bool, True = skipped.
            rewards: (m,) float, the higher the better.

        Raises:
            ValueError: a wrong shape, or a reward that is not finite, or beyond `MAX_REWARD`.
        """

    @abstractmethod
    def best(self) -> Masks:
        """The agent's answer: (n_layers,) bool, True = skipped; the same whenever it is asked in the same state."""

    def skip_probabilities(self) -> Floats | None:
        """(n_layers,) float64 in 0..1, how likely each layer is skipped now; None for an agent that has none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that changes while searching, the generator included, in plain JSON values."""
        return {**self.space.budget.as_dict(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            ValueError: the state is of an agent with another budget.
        """
        for name, mine in self.space.budget.as_dict().items():
            if state[name] != mine:
                raise ValueError(f"the saved agent has {name}={state[name]}, this one {mine}; make it with the saved one's")
        self.rng.bit_generator.state = state["rng"]

    def _check_told(self, masks: Masks, rewards: Floats) -> tuple[Masks, Floats]:
        given, rewards = np.asarray(masks), np.asarray(rewards, dtype=np.float64)
        masks = given.astype(bool)
        if (given != masks).any():
            raise ValueError("masks hold other values than 0 (keep) and 1 (skip)")
        if masks.ndim != 2 or masks.shape[1] != self.n_layers or rewards.shape != masks.shape[:1]:
            raise ValueError(
                f"masks {masks.shape}, rewards {rewards.shape}: give (m, {self.n_layers}) and (m,), one row a mask"
            )
        if not np.isfinite(rewards).all():
            mask = masks[~np.isfinite(rewards)][0]
            raise ValueError(f"the reward of the mask that skips layers {np.flatnonzero(mask).tolist()} is not finite")
        if np.abs(rewards).max(initial=0.0) > MAX_REWARD:
            raise ValueError(f"a reward of {rewards[np.abs(rewards).argmax()]}: give rewards within {MAX_REWARD:g} of 0")
        return masks, rewards


def _from_one_on(ask: Callable[[Any, int], Masks]) -> Callable[[Any, int], Masks]:
    @functools.wraps(ask)
    def checked(self: Any, n: int) -> Masks:
        check_number("n", n, minimum=1, whole=True)
        return ask(self, n)

    return checked


def register_agent(name: str, agent: str | type[Agent]) -> None:
    """Add an agent of one's own: searches, comparisons and commands then take its name.

    Args:
        name: As which it is asked for.
        agent: Its class, or that class's "module:class", which is imported when it is asked for.

    Raises:
        TypeError: neither.
        ValueError: a name that is not allowed or taken.
    """
    from das_gym.agents.sb3.algorithms import ALGORITHMS

    is_path = isinstance(agent, str) and all(agent.partition(":"))
    if not (is_path or (isinstance(agent, type) and issubclass(agent, Agent))):
        raise TypeError(f"register_agent({name!r}, {agent!r}): give a subclass of das_gym.agents.Agent, or 'module:class'")
    add_entry(AGENTS, name, agent, "agent", ALGORITHMS)


def agent_class(name: str) -> type[Agent]:
    """The class of the agent called `name`: a key of `AGENTS`, or "module:class".

    Raises:
        ValueError: no such agent.
    """
    if ":" not in name:
        check_names([name], AGENTS, "agent", own=True)
    allowed = "give a name that `python -m agents list` shows, or 'module:class' of your own"
    try:
        cls = find_class(AGENTS.get(name, name))
    except ValueError as error:
        raise ValueError(f"agent {error}; {allowed}") from error
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"agent {name!r} is not a subclass of das_gym.agents.Agent; {allowed}")
    return cls


def make_agent(
    name: str,
    space: MaskSpace,
    seed: int | np.random.Generator | None = None,
    agent_kwargs: Mapping[str, Any] | None = None,
    statistics: Mapping[str, Floats] | None = None,
) -> Agent:
    """The agent called `name`.

    Args:
        name: A key of `AGENTS`, or "module:class" of one's own.
        space: The masks to choose from.
        seed: Seed, or the generator to draw from.
        agent_kwargs: The agent's own hyperparameters.
        statistics: Layer statistics, name to (n_layers,), for an agent that reads them.

    Raises:
        ValueError: no such agent, or a hyperparameter it does not have.
    """
    cls = agent_class(name)
    check_agent_kwargs(name, agent_kwargs or {})
    known = {} if statistics is None else statistics  # an empty mapping may tell what it is asked for
    observed = {"statistics": known} if "statistics" in inspect.signature(cls).parameters else {}
    return cls(space, seed, **observed, **(agent_kwargs or {}))


def check_agent_kwargs(name: str, agent_kwargs: Mapping[str, Any]) -> None:
    """Refuse a hyper-parameter that the agent called `name` does not have.

    Raises:
        ValueError: no such agent, or no such hyper-parameter of it.
    """
    own = list(inspect.signature(agent_class(name)).parameters)[2:]  # after space, seed
    check_names(agent_kwargs, [key for key in own if key != "statistics"], f"setting of agent {name!r},")


def check_number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse a hyperparameter outside its range.

    Raises:
        ValueError: `value` is no finite (whole) number from `minimum` to `maximum`, ends included, or not above `above`.
    """
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not minimum <= value <= maximum or (above is not None and value <= above):
        ends = [f"from {minimum:g}"] if math.isfinite(minimum) else [] if above is None else [f"above {above:g}"]
        ends += [f"to {maximum:g}"] if math.isfinite(maximum) else []
        raise ValueError(f"{name}={value!r} is not allowed; give a {'whole ' if whole else ''}number {' '.join(ends)}")
