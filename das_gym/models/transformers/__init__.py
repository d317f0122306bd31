"""Any vision-language model of transformers."""

from typing import TYPE_CHECKING

from das_gym.names import lazy_attributes

_PLACES = {
    "VLM": "das_gym.models.transformers.model",
    "load_vlm": "das_gym.models.transformers.loading",
    "prune": "das_gym.models.transformers.layer_removal",
}

if TYPE_CHECKING:
    from das_gym.models.transformers.layer_removal import prune as prune
    from das_gym.models.transformers.loading import load_vlm as load_vlm
    from das_gym.models.transformers.model import VLM as VLM
else:
    __getattr__, __dir__ = lazy_attributes(__name__, _PLACES)

__all__ = list(_PLACES)
