"""The families that can be pre-trained. A new one is a file next to these and an entry here."""

from benchmarks.pretrain.family import AnsweringModel, PretrainModel
from benchmarks.pretrain.llava import LLAVA_MINI
from benchmarks.pretrain.meter import METER_MINI
from benchmarks.pretrain.smolvlm import SMOLVLM_MINI
from benchmarks.pretrain.vilt import VILT_MINI

PRETRAIN_MODELS: dict[str, PretrainModel] = {"METER": METER_MINI, "ViLT": VILT_MINI}
"""Models with a task head, by name."""

ANSWERING_MODELS: dict[str, AnsweringModel] = {"SmolVLM": SMOLVLM_MINI, "LLaVA": LLAVA_MINI}
"""Models that answer in words, by name."""
