"""Who chooses masks: agents, and the search loop that lets them."""

from das_gym.agents.ask_tell.bandit import Bandit
from das_gym.agents.ask_tell.base import AGENTS, Agent, make_agent, register_agent
from das_gym.agents.ask_tell.bayes import Bayes
from das_gym.agents.ask_tell.best_seen import BestSeen, OneMask
from das_gym.agents.ask_tell.cross_entropy import CrossEntropy
from das_gym.agents.ask_tell.evolution import Evolution
from das_gym.agents.ask_tell.exhaustive import Exhaustive
from das_gym.agents.ask_tell.greedy import Greedy, LeaveOneOut
from das_gym.agents.ask_tell.one_shot import OneShot
from das_gym.agents.ask_tell.random_search import RandomSearch
from das_gym.agents.ask_tell.uniform import Uniform
from das_gym.agents.searching.loop import SearchConfig, search
from das_gym.agents.searching.record import SearchResult, Turn

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace

__all__ = [
    "AGENTS",
    "Agent",
    "Bandit",
    "Bayes",
    "BestSeen",
    "Budget",
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
    "register_agent",
    "search",
]
