"""What an agent without gradients is: it is asked for masks and told their rewards."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from das_gym.config import check_names

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

AGENTS = {
    "bandit": "agents.bandit:Bandit",
    "random": "agents.random_search:RandomSearch",
}
"""Name to "module:class". An agent outside this table is named by its "module:class" itself."""


class Agent(ABC):
    """Chooses masks that skip exactly `skip_num` of `n_layers` layers.

    A search is `masks = ask(n)`, `tell(masks, rewards)`, again and again, and then `best()`.
    A subclass takes its own hyper-parameters as keyword arguments after `seed`.

    Args:
        n_layers: Number of skippable layers, at least 1.
        skip_num: How many layers a mask skips, 0..n_layers.
        seed: Seed, or the generator to draw from.

    Attributes:
        least_masks: The fewest masks a turn that this agent learns from.
        preferences: (n_layers,) float64, the larger the rather skipped; None for an agent that has none.

    Raises:
        ValueError: a number outside its range.
    """

    least_masks: ClassVar[int] = 1
    preferences: Floats | None = None

    def __init__(self, n_layers: int, skip_num: int, seed: int | np.random.Generator | None = None) -> None:
        if n_layers < 1:
            raise ValueError(f"n_layers={n_layers} is not allowed; there must be at least 1 skippable layer")
        if not 0 <= skip_num <= n_layers:
            raise ValueError(f"skip_num={skip_num} is not allowed with {n_layers} skippable layers; use 0..{n_layers}")
        self.n_layers = n_layers
        self.skip_num = skip_num
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def ask(self, n: int) -> Masks:
        """Up to `n` masks to score next.

        Args:
            n: How many are wanted, at least 1.

        Returns:
            (m, n_layers) bool, True = skipped, distinct, m <= n: fewer when no more exist, none when the
            agent is done.
        """

    @abstractmethod
    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Learn from scored masks.

        Args:
            masks: (m, n_layers) bool, True = skipped.
            rewards: (m,) float, the higher the better.

        Raises:
            ValueError: a wrong shape, or a reward that is not finite.
        """

    @abstractmethod
    def best(self) -> Masks:
        """The agent's answer: (n_layers,) bool, True = skipped; the same whenever it is asked in the same state."""

    def skip_probabilities(self) -> Floats | None:
        """(n_layers,) float64 in 0..1, how likely each layer is skipped now; None for an agent that has none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that changes while searching, the generator included, in plain JSON values."""
        return {"n_layers": self.n_layers, "skip_num": self.skip_num, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            ValueError: the state is of an agent with other `n_layers` or `skip_num`.
        """
        for name, mine in (("n_layers", self.n_layers), ("skip_num", self.skip_num)):
            if state[name] != mine:
                raise ValueError(f"the saved agent has {name}={state[name]}, this one {mine}; make it with the saved one's")
        self.rng.bit_generator.state = state["rng"]

    def _check_told(self, masks: Masks, rewards: Floats) -> tuple[Masks, Floats]:
        masks, rewards = np.asarray(masks, dtype=bool), np.asarray(rewards, dtype=np.float64)
        if masks.ndim != 2 or masks.shape[1] != self.n_layers or rewards.shape != masks.shape[:1]:
            raise ValueError(
                f"masks {masks.shape}, rewards {rewards.shape}: give (m, {self.n_layers}) and (m,), one row a mask"
            )
        if not np.isfinite(rewards).all():
            mask = masks[~np.isfinite(rewards)][0]
            raise ValueError(f"the reward of the mask that skips layers {np.flatnonzero(mask).tolist()} is not finite")
        return masks, rewards


def agent_class(name: str) -> type[Agent]:
    """The class of the agent called `name`: a key of `AGENTS`, or "module:class".

    Raises:
        ValueError: no such agent.
    """
    if ":" not in name:
        check_names([name], AGENTS, "agent")
    module, _, attribute = AGENTS.get(name, name).partition(":")
    allowed = f"give one of {', '.join(AGENTS)}, or 'module:class' of your own"
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"agent {name!r} cannot be imported ({error}); {allowed}") from error
    if not (isinstance(cls, type) and issubclass(cls, Agent)):
        raise ValueError(f"agent {name!r} is not a subclass of agents.Agent; {allowed}")
    return cls


def make_agent(
    name: str,
    n_layers: int,
    skip_num: int,
    seed: int | np.random.Generator | None = None,
    agent_kwargs: Mapping[str, Any] | None = None,
) -> Agent:
    """The agent called `name`.

    Args:
        name: A key of `AGENTS`, or "module:class" of one's own.
        n_layers: Number of skippable layers.
        skip_num: How many layers a mask skips, 0..n_layers.
        seed: Seed, or the generator to draw from.
        agent_kwargs: The agent's own hyper-parameters.

    Raises:
        ValueError: no such agent, or a hyper-parameter it does not have.
    """
    cls = agent_class(name)
    own = list(inspect.signature(cls).parameters)[3:]  # after n_layers, skip_num, seed
    check_names(agent_kwargs or {}, own, f"setting of agent {name!r},")
    return cls(n_layers, skip_num, seed, **(agent_kwargs or {}))


def top_mask(values: Floats, skip_num: int) -> Masks:
    """(n_layers,) bool mask of the `skip_num` largest of `values`; of equal ones the first."""
    mask = np.zeros(len(values), dtype=bool)
    mask[np.argsort(-values, kind="stable")[:skip_num]] = True
    return mask
