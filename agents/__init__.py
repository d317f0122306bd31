"""Who chooses masks: agents, and the search loop that lets them."""

from agents.bandit import Bandit
from agents.base import AGENTS, Agent, make_agent
from agents.bayes import Bayes
from agents.best_seen import BestSeen, OneMask
from agents.cross_entropy import CrossEntropy
from agents.evolution import Evolution
from agents.exhaustive import Exhaustive
from agents.greedy import Greedy, LeaveOneOut
from agents.one_shot import OneShot
from agents.random_search import RandomSearch
from agents.record import SearchResult, Turn
from agents.search import SearchConfig, search
from agents.space import MaskSpace
from agents.uniform import Uniform

__all__ = [
    "AGENTS",
    "Agent",
    "Bandit",
    "Bayes",
    "BestSeen",
    "CrossEntropy",
    "Evolution",
    "Exhaustive",
    "Greedy",
    "LeaveOneOut",
    "MaskSpace",
    "OneMask",
    "OneShot",
    "RandomSearch",
    "SearchConfig",
    "SearchResult",
    "Turn",
    "Uniform",
    "make_agent",
    "search",
]
