"""Training and export: supernets, fine-tuning, the pipeline of the paper, shrinking, comparisons."""

from typing import TYPE_CHECKING

from das_gym.names import lazy_attributes

_PLACES = {
    "Shrunk": "das_gym.adapt.shrinking.shrink",
    "Tuned": "das_gym.adapt.tuned",
    "das": "das_gym.adapt.pipeline",
    "finetune": "das_gym.adapt.tuned",
    "load_subnet": "das_gym.adapt.subnets",
    "save": "das_gym.adapt.subnets",
    "shrink": "das_gym.adapt.shrinking.shrink",
}

if TYPE_CHECKING:
    from das_gym.adapt.pipeline import das as das
    from das_gym.adapt.shrinking.shrink import Shrunk as Shrunk
    from das_gym.adapt.shrinking.shrink import shrink as shrink
    from das_gym.adapt.subnets import load_subnet as load_subnet
    from das_gym.adapt.subnets import save as save
    from das_gym.adapt.tuned import Tuned as Tuned
    from das_gym.adapt.tuned import finetune as finetune
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _PLACES)

__all__ = list(_PLACES)
