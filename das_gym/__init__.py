"""das_gym: which layers of a vision-language model can a task do without? A Gymnasium environment package."""

from das_gym.registration import ENVIRONMENTS, register_all

__version__ = "0.1.0"
__all__ = ["ENVIRONMENTS", "__version__", "register_all"]

register_all()
