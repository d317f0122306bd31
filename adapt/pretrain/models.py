"""The families that can be pre-trained; a new one is a file beside these two and a line here."""

from das_gym.adapt.pretrain.family import PretrainModel
from das_gym.adapt.pretrain.meter import METER_MINI
from das_gym.adapt.pretrain.vilt import VILT_MINI

PRETRAIN_MODELS: dict[str, PretrainModel] = {"METER": METER_MINI, "ViLT": VILT_MINI}
"""By name."""
