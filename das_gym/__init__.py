"""das_gym: which layers of a vision-language model can a task do without? A Gymnasium environment package."""

from das_gym.registration import ENVIRONMENTS, ModelEntry, TaskEntry, register_all, register_model, register_task

__version__ = "0.1.0"
__all__ = [
    "ENVIRONMENTS",
    "ModelEntry",
    "TaskEntry",
    "__version__",
    "register_all",
    "register_model",
    "register_task",
]

register_all()
