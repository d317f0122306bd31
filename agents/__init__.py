"""Who chooses masks: agents, and the search loop that lets them."""

from agents.bandit import Bandit
from agents.base import AGENTS, Agent, make_agent
from agents.random_search import RandomSearch
from agents.record import SearchResult, Turn
from agents.search import SearchConfig, search

__all__ = ["AGENTS", "Agent", "Bandit", "RandomSearch", "SearchConfig", "SearchResult", "Turn", "make_agent", "search"]
