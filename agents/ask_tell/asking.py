"""What an agent hands over, checked: the masks that it asks for and its answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import Agent

from das_gym.problem.budget import Masks


def ask(agent: Agent, name: str, n: int) -> Masks:
    """The masks that an agent asks for: (m, n_layers) bool, m <= n.

    Args:
        agent: The agent.
        name: What it is called in an error.
        n: How many are wanted, at least 1.

    Raises:
        ValueError: it hands over something else, more masks than wanted, or one off a budget that it is to keep.
    """
    masks = agent.ask(n)
    wanted = f"give (m, {agent.n_layers}) of bool, True = skipped, m <= {n}, and no rows when there is nothing left to ask"
    _check_array(masks, f"agent {name!r}: ask({n})", wanted)
    if masks.ndim != 2 or masks.shape[1] != agent.n_layers or len(masks) > n:
        raise ValueError(f"agent {name!r}: ask({n}) gave masks of shape {masks.shape}; {wanted}")
    masks = masks.astype(bool)
    if not agent.free_budget:
        _check_budget(agent, masks, f"agent {name!r}: ask({n})", "or set free_budget = True on its class")
    return masks


def answer(agent: Agent, name: str) -> Masks:
    """An agent's answer, (n_layers,) bool.

    Args:
        agent: The agent.
        name: What it is called in an error.

    Raises:
        ValueError: it hands over something else, or a mask off the budget.
    """
    mask = agent.best()
    wanted = f"give ({agent.n_layers},) of bool, True = skipped"
    _check_array(mask, f"agent {name!r}: best()", wanted)
    if mask.shape != (agent.n_layers,):
        raise ValueError(f"agent {name!r}: best() gave a mask of shape {mask.shape}; {wanted}")
    mask = mask.astype(bool)
    _check_budget(agent, mask[None], f"agent {name!r}: best()", "also where ask() may leave the budget")
    return mask


def _check_array(given: Any, what: str, wanted: str) -> None:
    if not isinstance(given, np.ndarray):
        raise ValueError(f"{what} gave {type(given).__name__}, not a numpy array; {wanted}")
    if given.dtype != bool and not np.isin(given, (0, 1)).all():
        raise ValueError(f"{what} gave {given.dtype} values other than 0 (keep) and 1 (skip); {wanted}")


def _check_budget(agent: Agent, masks: Masks, what: str, otherwise: str) -> None:
    off = ~agent.space.contains(masks)
    if off.any():
        skipped = np.flatnonzero(masks[off][0]).tolist()
        budget = {name: value for name, value in agent.space.budget.as_dict().items() if value is not None}
        raise ValueError(
            f"{what} gave the mask that skips layers {skipped}, which is off the budget {budget}; "
            f"choose masks that space.contains, {otherwise}"
        )
