"""The families that can be pre-trained; a new one is a file beside these two and a line here."""

from benchmarks.pretrain.family import PretrainModel
from benchmarks.pretrain.meter import METER_MINI
from benchmarks.pretrain.vilt import VILT_MINI

PRETRAIN_MODELS: dict[str, PretrainModel] = {"METER": METER_MINI, "ViLT": VILT_MINI}
"""By name."""
