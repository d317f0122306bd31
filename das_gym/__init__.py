"""das_gym: which layers of a vision-language model can a task do without? A Gymnasium environment package."""

from das_gym.processes import end_on_signals, is_command

if is_command():
    end_on_signals()  # Ctrl-C within the imports that follow prints no traceback

from typing import TYPE_CHECKING

from das_gym.names import lazy_attributes
from das_gym.registration import (
    ENVIRONMENTS,
    ModelEntry,
    TaskEntry,
    register_all,
    register_metric,
    register_model,
    register_task,
)

_PLACES = {
    "Budget": "das_gym.problem.budget",
    "Pair": "das_gym.models.inputs",
    "Problem": "das_gym.problem.problem",
    "ProblemConfig": "das_gym.problem.config",
    "Reward": "das_gym.problem.rewards",
    "SkipEnv": "das_gym.envs.skip_env",
    "SkipVectorEnv": "das_gym.envs.skip_env",
    "Splits": "das_gym.data.splits",
    "Statistic": "das_gym.problem.statistics",
    "SubnetTable": "das_gym.tables.table",
    "TabularEnv": "das_gym.envs.tabular_env",
    "Task": "das_gym.tasks.base",
    "VLP": "das_gym.models.base",
    "load_problem": "das_gym.problem.problem",
    "make_sb3_vec_env": "das_gym.envs.sb3_vec_env",
    "register_reward": "das_gym.problem.rewards",
    "register_statistic": "das_gym.problem.statistics",
}

if TYPE_CHECKING:
    from das_gym.data.splits import Splits as Splits
    from das_gym.envs.sb3_vec_env import make_sb3_vec_env as make_sb3_vec_env
    from das_gym.envs.skip_env import SkipEnv as SkipEnv
    from das_gym.envs.skip_env import SkipVectorEnv as SkipVectorEnv
    from das_gym.envs.tabular_env import TabularEnv as TabularEnv
    from das_gym.models.base import VLP as VLP
    from das_gym.models.inputs import Pair as Pair
    from das_gym.problem.budget import Budget as Budget
    from das_gym.problem.config import ProblemConfig as ProblemConfig
    from das_gym.problem.problem import Problem as Problem
    from das_gym.problem.problem import load_problem as load_problem
    from das_gym.problem.rewards import Reward as Reward
    from das_gym.problem.rewards import register_reward as register_reward
    from das_gym.problem.statistics import Statistic as Statistic
    from das_gym.problem.statistics import register_statistic as register_statistic
    from das_gym.tables.table import SubnetTable as SubnetTable
    from das_gym.tasks.base import Task as Task
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _PLACES)

__version__ = "0.3.0.dev0"
__all__ = [
    *_PLACES,
    "ENVIRONMENTS",
    "ModelEntry",
    "TaskEntry",
    "__version__",
    "register_all",
    "register_metric",
    "register_model",
    "register_task",
]

register_all()
