"""Agents that choose masks, and the search loop that runs them."""

from typing import TYPE_CHECKING

from das_gym.names import lazy_attributes

_PLACES = {
    "AGENTS": "das_gym.agents.ask_tell.base",
    "Agent": "das_gym.agents.ask_tell.base",
    "Bandit": "das_gym.agents.ask_tell.bandit",
    "Bayes": "das_gym.agents.ask_tell.bayes",
    "Budget": "das_gym.problem.budget",
    "MaskSpace": "das_gym.problem.mask_space",
    "SearchConfig": "das_gym.agents.settings",
    "SearchResult": "das_gym.agents.searching.record",
    "compare": "das_gym.agents.comparing.comparison",
    "make_agent": "das_gym.agents.ask_tell.base",
    "make_oracle": "das_gym.agents.comparing.oracle",
    "register_agent": "das_gym.agents.ask_tell.base",
    "search": "das_gym.agents.searching.loop",
}

if TYPE_CHECKING:
    from das_gym.agents.ask_tell.bandit import Bandit as Bandit
    from das_gym.agents.ask_tell.base import AGENTS as AGENTS
    from das_gym.agents.ask_tell.base import Agent as Agent
    from das_gym.agents.ask_tell.base import make_agent as make_agent
    from das_gym.agents.ask_tell.base import register_agent as register_agent
    from das_gym.agents.ask_tell.bayes import Bayes as Bayes
    from das_gym.agents.comparing.comparison import compare as compare
    from das_gym.agents.comparing.oracle import make_oracle as make_oracle
    from das_gym.agents.searching.loop import search as search
    from das_gym.agents.searching.record import SearchResult as SearchResult
    from das_gym.agents.settings import SearchConfig as SearchConfig

    from das_gym.problem.budget import Budget as Budget
    from das_gym.problem.mask_space import MaskSpace as MaskSpace
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _PLACES)

__all__ = list(_PLACES)
